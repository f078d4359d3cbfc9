//! The small tree that a task in TOML and a task in JSON both become.

use std::ops::Range;

use serde_json::Value as Json;
use toml::de::{DeTable, DeValue};

/// What TOML and JSON have in common, with where it stood.
pub(super) struct Node {
    pub(super) data: Data,
    pub(super) span: Option<Range<usize>>,
}

pub(super) enum Data {
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    /// A time as TOML has them without quotes.
    Time(String),
    List(Vec<Node>),
    Table(Vec<Member>),
    /// JSON's null; a member that has it is as good as absent.
    Null,
    /// A number that fits no integer of 64 bits.
    TooLarge,
}

pub(super) struct Member {
    pub(super) name: String,
    pub(super) name_span: Option<Range<usize>>,
    pub(super) node: Node,
}

impl Data {
    /// What it is, for "must be text, is ...".
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Bool(_) => "true or false",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::TooLarge => "a number that is too large",
            Self::Text(_) => "text",
            Self::Time(_) => "a time",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Null => "null",
        }
    }
}

pub(super) fn table_node(table: &DeTable<'_>) -> Data {
    let mut members: Vec<Member> = table
        .iter()
        .map(|(key, value)| Member {
            name: key.get_ref().to_string(),
            name_span: Some(key.span()),
            node: Node { data: toml_node(value.get_ref()), span: Some(value.span()) },
        })
        .collect();
    members.sort_by_key(|member| member.name_span.as_ref().map(|span| span.start));
    Data::Table(members)
}

pub(super) fn toml_node(value: &DeValue<'_>) -> Data {
    match value {
        DeValue::String(text) => Data::Text(text.to_string()),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).map_or(Data::TooLarge, Data::Integer)
        }
        DeValue::Float(number) => number.as_str().parse().map_or(Data::TooLarge, Data::Float),
        DeValue::Boolean(value) => Data::Bool(*value),
        DeValue::Datetime(time) => Data::Time(time.to_string()),
        DeValue::Array(items) => Data::List(
            items.iter().map(|item| Node { data: toml_node(item.get_ref()), span: Some(item.span()) }).collect(),
        ),
        DeValue::Table(table) => table_node(table),
    }
}

pub(super) fn json_node(value: &Json) -> Data {
    match value {
        Json::Null => Data::Null,
        Json::Bool(value) => Data::Bool(*value),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => Data::Integer(number),
            (None, Some(float)) if number.is_f64() => Data::Float(float),
            _ => Data::TooLarge,
        },
        Json::String(text) => Data::Text(text.clone()),
        Json::Array(items) => Data::List(items.iter().map(|item| Node { data: json_node(item), span: None }).collect()),
        Json::Object(members) => Data::Table(
            members
                .iter()
                .map(|(name, value)| Member {
                    name: name.clone(),
                    name_span: None,
                    node: Node { data: json_node(value), span: None },
                })
                .collect(),
        ),
    }
}

/// Where the value of a member stands.
pub(super) fn member_span(table: Option<&Node>, name: &str) -> Option<Range<usize>> {
    let Data::Table(members) = &table?.data else {
        return None;
    };
    members.iter().find(|member| member.name == name)?.node.span.clone()
}
