//! The OpenMetrics text format (OpenMetrics 1.0.0), read strictly: whatever Prometheus would refuse fails the test.

use std::collections::{BTreeMap, BTreeSet};

/// What a scrape found.
#[derive(Debug)]
pub(crate) struct Exposition {
    /// Families, and their samples as they are written.
    families: BTreeMap<String, Vec<(String, f64)>>,
}

impl Exposition {
    /// Reads a whole exposition; panics with what is wrong.
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Exposition {
        let body = text.strip_suffix("# EOF\n").unwrap_or_else(|| panic!("it does not end in `# EOF`:\n{text}"));
        let mut families: BTreeMap<String, Vec<(String, f64)>> = BTreeMap::new();
        let (mut name, mut kind) = (String::new(), String::new());
        let mut seen = BTreeSet::new();
        for line in body.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let (word, of, value) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
                if of != name {
                    assert!(is_name(of) && !families.contains_key(of), "{of} is there twice, or no name");
                    assert!(of.starts_with("tstunnel_") || of.starts_with("process_"), "{of}");
                    families.insert(of.to_owned(), Vec::new());
                    (name, kind) = (of.to_owned(), String::new());
                }
                match word {
                    "TYPE" => kind = value.to_owned(),
                    "HELP" => assert!(!value.is_empty(), "{line}"),
                    "UNIT" => assert!(name.ends_with(&format!("_{value}")), "{line}"),
                    _ => panic!("{line}"),
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
            let (sample, labels) = series.split_once('{').unwrap_or((series, "}"));
            let suffix = sample.strip_prefix(&name).unwrap_or_else(|| panic!("{line} is not of {name}"));
            let fits = match kind.as_str() {
                "counter" => suffix == "_total" && value >= 0.0,
                "gauge" => suffix.is_empty(),
                "info" => suffix == "_info" && value == 1.0,
                "histogram" => matches!(suffix, "_bucket" | "_count" | "_sum") && value >= 0.0,
                _ => false,
            };
            assert!(fits, "{line} is no sample of the {kind} {name}");
            assert_labels(line, labels);
            assert!(seen.insert(series.to_owned()), "{series} is there twice");
            families.get_mut(&name).unwrap().push((series.to_owned(), value));
        }
        families.values().for_each(|samples| assert_buckets(samples));
        Exposition { families }
    }

    /// The value of one sample; `sample` is as it is written.
    pub(crate) fn find(&self, sample: &str) -> Option<f64> {
        self.families.values().flatten().find(|(name, _)| name == sample).map(|(_, value)| *value)
    }

    /// All samples of a family.
    pub(crate) fn family(&self, name: &str) -> &[(String, f64)] {
        self.families.get(name).map(Vec::as_slice).unwrap_or_default()
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// Checks `name="value",…}`; the values that the server has need no escapes.
#[track_caller]
fn assert_labels(line: &str, labels: &str) {
    let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("labels without an end: {line}"));
    let mut names = BTreeSet::new();
    for label in labels.split(',').filter(|label| !label.is_empty()) {
        let (name, value) = label.split_once('=').unwrap_or_else(|| panic!("no label: {line}"));
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        assert!(is_name(name) && names.insert(name), "{line}");
        assert!(value.is_some_and(|value| !value.contains(['"', '\\', '\n'])), "{line}");
    }
}

/// Checks that the buckets of a histogram count upwards to all of it.
#[track_caller]
fn assert_buckets(samples: &[(String, f64)]) {
    let buckets: Vec<f64> =
        samples.iter().filter(|(name, _)| name.contains("_bucket{")).map(|(_, value)| *value).collect();
    let count = samples.iter().find(|(name, _)| name.ends_with("_count")).map(|(_, value)| *value);
    assert!(buckets.is_sorted(), "{samples:?}");
    assert_eq!(buckets.last().copied(), count.filter(|_| !buckets.is_empty()), "{samples:?}");
}
