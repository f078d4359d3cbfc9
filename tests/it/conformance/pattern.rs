//! What a value has to look like (`tests/conformance/README.md`, "Patterns"). Knows no sockets.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// What a case has remembered so far, by name.
pub type Memory = BTreeMap<String, Value>;

/// Absent and null mean the same.
fn there(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| !value.is_null())
}

fn is_operator(object: &Map<String, Value>) -> bool {
    object.keys().any(|key| key.starts_with('$'))
}

/// Whether a value is as a pattern says; why not, with the place. What `$save` names is remembered.
pub fn check(pattern: &Value, value: Option<&Value>, memory: &mut Memory, at: &str) -> Result<(), String> {
    let shown = || value.map_or("nothing".to_owned(), |value| shorten(&value.to_string()));
    match pattern {
        Value::Object(object) if is_operator(object) => operators(object, value, memory, at),
        Value::Object(members) => {
            let Some(Value::Object(got)) = value else {
                return Err(format!("{at}: an object was to come, not {}", shown()));
            };
            members
                .iter()
                .try_for_each(|(name, pattern)| check(pattern, got.get(name), memory, &format!("{at}.{name}")))
        }
        Value::Array(items) => {
            let Some(Value::Array(got)) = value else {
                return Err(format!("{at}: a list was to come, not {}", shown()));
            };
            if got.len() != items.len() {
                return Err(format!("{at}: {} items were to come, not {}: {}", items.len(), got.len(), shown()));
            }
            let both = items.iter().zip(got).enumerate();
            both.into_iter().try_for_each(|(n, (item, got))| check(item, Some(got), memory, &format!("{at}[{n}]")))
        }
        Value::Null => match there(value) {
            None => Ok(()),
            Some(_) => Err(format!("{at}: nothing was to come, not {}", shown())),
        },
        literal if same(Some(literal), value) => Ok(()),
        literal => Err(format!("{at}: {literal} was to come, not {}", shown())),
    }
}

/// Numbers are the same if their values are.
fn same(left: Option<&Value>, right: Option<&Value>) -> bool {
    match (there(left), there(right)) {
        (Some(Value::Number(left)), Some(Value::Number(right))) => left.as_f64() == right.as_f64(),
        (left, right) => left == right,
    }
}

fn operators(object: &Map<String, Value>, value: Option<&Value>, memory: &mut Memory, at: &str) -> Result<(), String> {
    let shown = || value.map_or("nothing".to_owned(), |value| shorten(&value.to_string()));
    let wrong = |what: String| Err(format!("{at}: {what} was to come, not {}", shown()));
    let number = || value.and_then(Value::as_i64);
    if object.keys().any(|key| ["$var", "$join", "$fill", "$uuid"].contains(&key.as_str())) {
        let wanted = fill(&Value::Object(object.clone()), memory)?;
        return if same(Some(&wanted), value) { Ok(()) } else { wrong(wanted.to_string()) };
    }
    for (operator, operand) in object {
        match operator.as_str() {
            "$any" => {
                there(value).ok_or_else(|| format!("{at}: something was to come, not {}", shown()))?;
            }
            "$save" => {
                let got = there(value).ok_or_else(|| format!("{at}: something was to come, not {}", shown()))?;
                memory.insert(text(operand)?, got.clone());
            }
            "$ge" | "$le" => {
                let limit = fill(operand, memory)?.as_i64().ok_or("a limit is a number")?;
                let good = number().is_some_and(|got| if operator == "$ge" { got >= limit } else { got <= limit });
                if !good {
                    return wrong(format!("a number {operator} {limit}"));
                }
            }
            "$not" => {
                if check(operand, value, memory, at).is_ok() {
                    return wrong(format!("anything but {operand}"));
                }
            }
            "$one_of" => {
                let patterns = operand.as_array().ok_or("$one_of takes a list")?;
                if !patterns.iter().any(|pattern| check(pattern, value, memory, at).is_ok()) {
                    return wrong(format!("one of {operand}"));
                }
            }
            "$length" => {
                let length = match value {
                    Some(Value::Array(items)) => json!(items.len()),
                    Some(Value::String(text)) => json!(text.chars().count()),
                    Some(Value::Object(members)) => json!(members.len()),
                    _ => return wrong("something with a length".to_owned()),
                };
                check(operand, Some(&length), memory, &format!("{at}.length"))?;
            }
            "$each" => {
                let Some(Value::Array(items)) = value else { return wrong("a list".to_owned()) };
                for (n, item) in items.iter().enumerate() {
                    check(operand, Some(item), memory, &format!("{at}[{n}]"))?;
                }
            }
            "$has" => {
                let Some(Value::Array(items)) = value else { return wrong("a list".to_owned()) };
                if !items.iter().any(|item| check(operand, Some(item), memory, at).is_ok()) {
                    return wrong(format!("a list with {operand}"));
                }
            }
            "$seqs" => {
                let seqs = value
                    .and_then(Value::as_array)
                    .map(|items| items.iter().map(|item| item["seq"].as_u64().unwrap_or_default()).collect::<Vec<_>>());
                let (first, last) = (operand[0].as_u64(), operand[1].as_u64());
                let (Some(first), Some(last)) = (first, last) else { return Err("$seqs takes two numbers".into()) };
                if seqs != Some((first..=last).collect()) {
                    return wrong(format!("the events {first} to {last}"));
                }
            }
            "$format" => {
                let format = text(operand)?;
                if !value.and_then(Value::as_str).is_some_and(|text| is_of_format(&format, text)) {
                    return wrong(format!("a {format}"));
                }
            }
            "$only" => {
                let Some(Value::Object(got)) = value else { return wrong("an object".to_owned()) };
                let allowed = operand.as_object().ok_or("$only takes an object")?;
                check(operand, value, memory, at)?;
                let more = got.iter().find(|(name, value)| !value.is_null() && !allowed.contains_key(*name));
                if let Some((name, _)) = more {
                    return Err(format!("{at}: no member {name} was to come"));
                }
            }
            other => return Err(format!("{at}: {other} is no operator")),
        }
    }
    Ok(())
}

fn is_of_format(format: &str, text: &str) -> bool {
    let shape = |pattern: &str| {
        let fits = |(wanted, got): (char, char)| match wanted {
            '0' => got.is_ascii_digit(),
            'x' => matches!(got, '0'..='9' | 'a'..='f'),
            exact => exact == got,
        };
        text.chars().count() == pattern.chars().count() && pattern.chars().zip(text.chars()).all(fits)
    };
    match format {
        "gen" => shape("xxxxxxxxxxxxxxxx"),
        "time" => shape("0000-00-00T00:00:00.000000Z"),
        "uuid" => shape("xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"),
        _ => false,
    }
}

/// A value with everything in it that is to be filled in filled in.
pub fn fill(value: &Value, memory: &mut Memory) -> Result<Value, String> {
    match value {
        Value::Object(object) if is_operator(object) => operand(object, memory),
        Value::Object(members) => {
            let filled = members.iter().map(|(name, value)| Ok((name.clone(), fill(value, memory)?)));
            Ok(Value::Object(filled.collect::<Result<_, String>>()?))
        }
        Value::Array(items) => {
            Ok(Value::Array(items.iter().map(|item| fill(item, memory)).collect::<Result<_, String>>()?))
        }
        literal => Ok(literal.clone()),
    }
}

fn operand(object: &Map<String, Value>, memory: &mut Memory) -> Result<Value, String> {
    if let Some(name) = object.get("$var") {
        let name = text(name)?;
        let value = memory.get(&name).ok_or_else(|| format!("nothing was saved as {name}"))?;
        let Some(plus) = object.get("plus") else { return Ok(value.clone()) };
        let sum = value.as_i64().zip(plus.as_i64()).ok_or_else(|| format!("{name} and plus are numbers"))?;
        return Ok(json!(sum.0 + sum.1));
    }
    if let Some(parts) = object.get("$join") {
        let parts = parts.as_array().ok_or("$join takes a list")?.iter().map(|part| {
            Ok(match fill(part, memory)? {
                Value::String(text) => text,
                other => other.to_string(),
            })
        });
        return Ok(Value::String(parts.collect::<Result<String, String>>()?));
    }
    if let Some(length) = object.get("$fill") {
        let length = length.as_u64().and_then(|length| usize::try_from(length).ok()).ok_or("$fill takes a number")?;
        return Ok(Value::String("x".repeat(length)));
    }
    if let Some(name) = object.get("$uuid") {
        let key = format!("uuid {}", text(name)?);
        return Ok(memory.entry(key).or_insert_with(|| json!(uuid::Uuid::new_v4())).clone());
    }
    Err(format!("{} cannot be sent", Value::Object(object.clone())))
}

fn text(value: &Value) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| format!("{value} is no name"))
}

fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(600).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[test]
fn patterns_mean_here_what_they_mean_in_the_other_languages() {
    let text = std::fs::read_to_string(super::folder().join("patterns.json")).unwrap();
    let examples: Value = serde_json::from_str(&text).unwrap();
    for example in examples["examples"].as_array().unwrap() {
        let mut memory: Memory = serde_json::from_value(example["memory"].clone()).unwrap_or_default();
        let checked = check(&example["pattern"], example.get("value"), &mut memory, "value");
        assert_eq!(json!(checked.is_ok()), example["fits"], "{example}: {checked:?}");
        if let Some(saved) = example.get("saved") {
            assert_eq!(&json!(memory), saved, "{example}");
        }
    }
    for example in examples["filled"].as_array().unwrap() {
        let mut memory: Memory = serde_json::from_value(example["memory"].clone()).unwrap_or_default();
        assert_eq!(fill(&example["from"], &mut memory).as_ref(), Ok(&example["to"]), "{example}");
    }
}
