//! The list of codes → the table in the README.

use tstunnel::error::{Code, Retry};

use crate::part::Part;

pub(crate) fn parts() -> Vec<Part> {
    vec![("codes", codes())]
}

fn codes() -> String {
    let mut table = "\n| code | what has happened | what to do | try again? |\n|---|---|---|---|\n".to_owned();
    for code in Code::ALL {
        let again = match code.retry() {
            Retry::No => "",
            Retry::Yes => "it may pass",
            Retry::AfterInstall => "Mutagen installs its agent, and does",
        };
        table.push_str(&format!("| `{code}` | {} | {} | {again} |\n", code.meaning(), code.default_hint()));
    }
    table + "\n"
}
