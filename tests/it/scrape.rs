//! A scrape of `/metrics`, read as Prometheus reads it.

use std::collections::{BTreeMap, BTreeSet};

use prometheus_parse::Value;

use crate::harness::{Client, Home, PATIENCE};

/// The families of a scrape and their samples.
pub struct Scrape {
    /// The text.
    pub text: String,
    /// The type of each family.
    pub types: BTreeMap<String, String>,
    /// The help of each.
    pub help: BTreeMap<String, String>,
    /// Every sample by its name and labels: `name{a="b",c="d"}`.
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    /// Asks with the token that is for this; the answer has to be one.
    pub async fn of(home: &Home, client: &Client) -> Self {
        let token = std::fs::read_to_string(home.path().join("data/metrics-token")).unwrap();
        let answer = ask(client, Some(&token)).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        Self::read(answer.text().await.unwrap())
    }

    /// Of a server that has a schedule and has done something.
    pub async fn after_a_run() -> Self {
        let home = Home::new("").task(
            "job",
            "title = \"Job\"\n[schedule]\ncron = \"0 3 * * *\"\n[[steps]]\nname = \"only\"\nrun = \"true\"\n",
        );
        let server = home.serve().await;
        let run = server.client.run("job").await;
        server.client.ended(&run).await;
        let scrape = Self::of(&home, &server.client).await;
        server.stop().await;
        scrape
    }

    /// Reads a page. The library leaves out what it does not understand: that nothing is left out is looked at too.
    pub fn read(text: String) -> Self {
        let parsed = prometheus_parse::Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
        let (mut samples, mut series) = (BTreeMap::new(), 0);
        for sample in &parsed.samples {
            let labels: BTreeMap<_, _> = sample.labels.iter().collect();
            let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let mut keep = |name: String, value: f64| {
                assert!(samples.insert(name.clone(), value).is_none(), "{name} is there twice");
                series += 1;
            };
            match &sample.value {
                Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => {
                    keep(format!("{}{labels}", sample.metric), *value);
                }
                Value::Histogram(buckets) => {
                    for bucket in buckets {
                        keep(format!("{}_bucket{{le=\"{}\"}}", sample.metric, bucket.less_than), bucket.count);
                    }
                }
                Value::Summary(_) => panic!("there are no summaries"),
            }
        }
        let lines = text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(series, lines, "every line is a sample that is understood");
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let types = types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect();
        let help = parsed.docs.into_iter().collect();
        Self { text, types, help, samples }
    }

    /// The value of a sample, named as it stands in the text.
    pub fn get(&self, sample: &str) -> f64 {
        self.find(sample).unwrap_or_else(|| panic!("no {sample} in:\n{}", self.text))
    }

    /// The same where it may not be there.
    pub fn find(&self, sample: &str) -> Option<f64> {
        self.samples.get(sample).copied()
    }

    /// The values of a label over all samples.
    pub fn values_of(&self, label: &str) -> BTreeSet<String> {
        let before = format!("{label}=\"");
        let value = |name: &String| Some(name.split_once(&before)?.1.split('"').next()?.to_owned());
        self.samples.keys().filter_map(value).collect()
    }

    /// All samples whose name begins so.
    pub fn starting_with<'s>(&'s self, begin: &'s str) -> impl Iterator<Item = (&'s str, f64)> {
        self.samples
            .iter()
            .filter(move |(name, _)| name.starts_with(begin))
            .map(|(name, value)| (name.as_str(), *value))
    }

    /// Every name that a query may ask for: those of the families, and the parts of histograms.
    pub fn names(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for (name, kind) in &self.types {
            match kind.as_str() {
                "histogram" => names.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}"))),
                _ => drop(names.insert(name.clone())),
            }
        }
        names
    }
}

/// GET /metrics with this token.
pub async fn ask(client: &Client, token: Option<&str>) -> reqwest::Response {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut request = http.get(format!("http://{}/metrics", client.address)).timeout(PATIENCE);
    if let Some(token) = token {
        request = request.bearer_auth(token.trim());
    }
    request.send().await.unwrap()
}
