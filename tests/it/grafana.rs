//! The dashboard for Grafana and the rules for Prometheus: they load, their queries are queries, and everything they ask
//! for is there.

use std::collections::BTreeSet;
use std::path::Path;

use rusty_promql_parser::expr as parse;
use serde_json::Value;

use crate::scrape::Scrape;

fn file(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/grafana").join(name)).unwrap()
}

/// What a query asks for: names of metrics, each with the labels it is chosen by.
fn asked_for(query: &str) -> Vec<(String, Vec<(String, String)>)> {
    // What Grafana fills in.
    let filled = query.replace("$__rate_interval", "5m").replace("$__range", "1d").replace("$instance", ".*");
    assert!(!filled.contains('$'), "{query}: a variable that nobody fills in");
    let (rest, tree) = parse(&filled).unwrap_or_else(|error| panic!("{query}: {error}"));
    assert_eq!(rest.trim(), "", "{query}: not all of it is a query");
    let mut found = Vec::new();
    selectors(&tree, &mut found);
    assert!(!found.is_empty(), "{query} asks for nothing");
    found
}

fn selectors(tree: &rusty_promql_parser::Expr, found: &mut Vec<(String, Vec<(String, String)>)>) {
    use rusty_promql_parser::Expr;
    let mut note = |selector: &rusty_promql_parser::VectorSelector| {
        let labels = selector.matchers.iter().map(|matcher| (matcher.name.clone(), matcher.value.clone()));
        found.push((selector.name.clone().expect("a name"), labels.collect()));
    };
    match tree {
        Expr::VectorSelector(selector) => note(selector),
        Expr::MatrixSelector(matrix) => note(&matrix.selector),
        Expr::Call(call) => call.args.iter().for_each(|arg| selectors(arg, found)),
        Expr::Aggregation(over) => {
            selectors(&over.expr, found);
            over.param.iter().for_each(|param| selectors(param, found));
        }
        Expr::Binary(both) => {
            selectors(&both.lhs, found);
            selectors(&both.rhs, found);
        }
        Expr::Unary(one) => selectors(&one.expr, found),
        Expr::Paren(inner) => selectors(inner, found),
        Expr::Subquery(over) => selectors(&over.expr, found),
        Expr::Number(_) | Expr::String(_) => {}
    }
}

/// Everything a query asks for is exported, under labels that are there. Gives the names.
fn check(query: &str, scrape: &Scrape) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (name, labels) in asked_for(query) {
        // Prometheus itself says whether a server answered.
        if name != "up" {
            assert!(scrape.names().contains(&name), "{query}: the server has no {name}");
            for (label, value) in labels.iter().filter(|(label, _)| label != "instance" && label != "job") {
                let values = scrape.values_of(label);
                for word in value.split('|') {
                    assert!(values.contains(word), "{query}: no {label}={word:?}; there are {values:?}");
                }
            }
        }
        names.insert(name);
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_the_dashboard_asks_for_what_the_server_exports() {
    let scrape = Scrape::after_a_run().await;
    let dashboard: Value = serde_json::from_str(&file("dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let (mut asked, mut ids, mut rows) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    let mut places: Vec<[u64; 4]> = Vec::new();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is there twice");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        let apart = |[ox, oy, ow, oh]: &[u64; 4]| x >= ox + ow || *ox >= x + w || y >= oy + oh || *oy >= y + h;
        assert!(x + w <= 24 && places.iter().all(apart), "{title} lies over another panel");
        places.push([x, y, w, h]);
        if panel["type"] == "row" {
            rows.push(title);
            continue;
        }
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title} shows nothing");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}");
            asked.extend(check(target["expr"].as_str().unwrap(), &scrape));
        }
    }
    assert_eq!(rows[..4], ["Was anything missed?", "Late?", "Failing?", "Is the stream healthy?"]);
    // The other way round: what is exported is shown, but for a few that are for rules and for questions.
    let unshown = ["process_max_fds", "process_start_time_seconds", "process_virtual_memory_bytes"];
    for name in scrape.types.keys() {
        let shown = asked.iter().any(|asked| asked == name || *asked == format!("{name}_bucket"));
        let is_of_task = name.starts_with("rejoin_task_");
        let counts = ["rejoin_ring_events", "rejoin_queue_events"].contains(&name.as_str());
        assert!(shown || is_of_task || counts || unshown.contains(&name.as_str()), "{name} is on no panel");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_asks_for_what_the_server_exports_and_says_what_it_means() {
    let scrape = Scrape::after_a_run().await;
    let rules: Value = serde_saphyr::from_str(&file("alerts.yml")).unwrap();
    let mut names = BTreeSet::new();
    for rule in rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap()) {
        let name = rule["alert"].as_str().unwrap();
        assert!(names.insert(name), "{name} is there twice");
        check(rule["expr"].as_str().unwrap(), &scrape);
        assert!(["critical", "warning", "info"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{name}");
        assert!(rule["annotations"]["summary"].as_str().is_some_and(|summary| !summary.is_empty()), "{name}");
        let known = ["alert", "expr", "for", "labels", "annotations"];
        assert!(rule.as_object().unwrap().keys().all(|key| known.contains(&key.as_str())), "{name}: {rule}");
    }
    for wanted in ["RejoinDown", "RejoinSlotsMissed", "RejoinTaskFailing", "RejoinStoreNotWritable"] {
        assert!(names.contains(wanted), "{wanted}");
    }
}

#[test]
fn a_query_that_is_none_is_found() {
    for query in ["sum(rate(a[5m])", "a{b=}", "rate(a[5m", "$other"] {
        assert!(std::panic::catch_unwind(|| asked_for(query)).is_err(), "{query}");
    }
    assert_eq!(asked_for("rate(a{b=\"c\"}[5m]) / b")[0].1, [("b".to_owned(), "c".to_owned())]);
}
