//! The budgets that are recorded in `tests/budgets/`, and what is said of costs that don't keep to them.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use serde::Deserialize;

use crate::count::Counts;
use crate::support::process::run;

/// Says that the budgets are to be written instead of kept to.
const WRITE: &str = "TSTUNNEL_WRITE_BUDGETS";

/// What a task costs one side.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Costs {
    pub(crate) instructions: u64,
    pub(crate) system_calls: Counts,
}

impl Costs {
    fn total_calls(&self) -> u64 {
        self.system_calls.values().sum()
    }
}

/// What decides the counts beside the project itself.
#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Tools {
    rustc: String,
    libc: String,
    valgrind: String,
    strace: String,
    /// What of the processor's extensions valgrind passes on, and libraries choose their code by.
    cpu: String,
}

impl Tools {
    fn here() -> Tools {
        let says = |program: &str, argument| {
            let written = run(Command::new(program).arg(argument));
            written.lines().next().unwrap_or_default().trim().to_owned()
        };
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
        let has = |extension: &&str| cpuinfo.split_whitespace().any(|word| word == *extension);
        let extensions =
            ["aes", "pclmulqdq", "ssse3", "sse4_2", "avx", "avx2", "bmi1", "bmi2", "rdrand", "erms", "fsrm"];
        Tools {
            rustc: says("rustc", "--version"),
            libc: says("getconf", "GNU_LIBC_VERSION"),
            valgrind: says("valgrind", "--version"),
            strace: says("strace", "--version"),
            cpu: extensions.into_iter().filter(has).collect::<Vec<_>>().join(" "),
        }
    }

    /// The two of each that differ.
    fn differences(&self, other: &Tools) -> Vec<String> {
        let fields =
            |tools: &Tools| [&tools.rustc, &tools.libc, &tools.valgrind, &tools.strace, &tools.cpu].map(String::clone);
        let pairs = fields(self).into_iter().zip(fields(other));
        pairs.filter(|(one, two)| one != two).map(|(one, two)| format!("`{one}` then, `{two}` here")).collect()
    }
}

/// A file of budgets.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Record {
    recorded_with: Tools,
    no_op: Costs,
    echo: Costs,
    up: Costs,
    down: Costs,
}

/// Compares the costs of each task with the recorded ones, or records them.
#[track_caller]
pub(crate) fn hold(side: &str, measured: &[(&str, Costs)]) {
    for (task, costs) in measured {
        println!("{side}, {task}: {} instructions, {} system calls", costs.instructions, costs.total_calls());
    }
    let path = format!("{}/tests/budgets/{side}.toml", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, written(side, &Tools::here(), measured)).unwrap();
        return;
    }
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}: run `make budgets`"));
    let Record { recorded_with, no_op, echo, up, down } =
        toml::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
    let compared = [no_op, echo, up, down].into_iter().zip(measured);
    let failures: Vec<String> =
        compared.flat_map(|(budget, (task, costs))| judge(&format!("{side}, {task}"), &budget, costs)).collect();
    assert!(failures.is_empty(), "{}\n{}", failures.join("\n"), advice(&recorded_with.differences(&Tools::here())));
}

/// What is to be said of one task's costs: nothing where they keep to the budget.
fn judge(what: &str, budget: &Costs, costs: &Costs) -> Vec<String> {
    let calls = judge_count(costs.total_calls(), budget.total_calls())
        .map(|verdict| format!("{what}: system calls {verdict}{}", changes(&budget.system_calls, &costs.system_calls)));
    let instructions =
        judge_count(costs.instructions, budget.instructions).map(|verdict| format!("{what}: instructions {verdict}"));
    instructions.into_iter().chain(calls).collect()
}

fn judge_count(count: u64, budget: u64) -> Option<String> {
    let change = (count as f64 / budget as f64 - 1.0) * 100.0;
    if count * 100 > budget * 105 {
        Some(format!("{count}, {change:+.1} % against the budget of {budget}; 5 % more are allowed"))
    } else if count * 100 < budget * 85 {
        Some(format!("{count}, {change:+.1} % against the budget of {budget}: record the new budget"))
    } else {
        None
    }
}

/// The names whose counts differ, in lines of their own.
fn changes(budget: &Counts, counts: &Counts) -> String {
    let names: std::collections::BTreeSet<&String> = budget.keys().chain(counts.keys()).collect();
    let pairs = names.into_iter().map(|name| (name, budget.get(name).unwrap_or(&0), counts.get(name).unwrap_or(&0)));
    pairs.filter(|(_, old, new)| old != new).map(|(name, old, new)| format!("\n    {name}: {old}, now {new}")).collect()
}

/// What to do about a failure.
fn advice(differences: &[String]) -> String {
    let record = "`make budgets` records what it costs now; commit that where the change is worth it.";
    if differences.is_empty() {
        return format!(
            "The tools are those that the budgets were recorded with, so the change is the project's. {record}"
        );
    }
    let differences = differences.join("\n    ");
    format!(
        "The budgets were recorded with other tools:\n    {differences}\nRun `make budgets` here on the last commit that kept \
         to them, and this test again on yours: what fails then is the project's. {record}"
    )
}

/// The text of a file of budgets.
fn written(side: &str, tools: &Tools, measured: &[(&str, Costs)]) -> String {
    let Tools { rustc, libc, valgrind, strace, cpu } = tools;
    let mut text = format!(
        "# What a session may cost the {side}.\n\
         # Written by `make budgets`. tests/budgets.rs says how it is counted.\n\n\
         [recorded-with]\nrustc = {rustc:?}\nlibc = {libc:?}\nvalgrind = {valgrind:?}\nstrace = {strace:?}\ncpu = {cpu:?}\n"
    );
    for (task, costs) in measured {
        let (instructions, total) = (costs.instructions, costs.total_calls());
        let _ = write!(text, "\n[{task}]\ninstructions = {instructions}\n\n# {total} in all\n[{task}.system-calls]\n");
        for (name, count) in &costs.system_calls {
            let _ = writeln!(text, "{name} = {count}");
        }
    }
    text
}

#[test]
fn costs_may_rise_by_five_hundredths_and_fall_by_fifteen() {
    for kept in [850, 1000, 1050] {
        assert_eq!(judge_count(kept, 1000), None);
    }
    assert!(judge_count(1051, 1000).unwrap().contains("+5.1 % against the budget of 1000"));
    assert!(judge_count(849, 1000).unwrap().ends_with("record the new budget"));
}

#[test]
fn a_failure_names_the_system_calls_that_changed() {
    let costs =
        |read| Costs { instructions: 7, system_calls: [("read".to_owned(), read), ("write".to_owned(), 3)].into() };
    assert_eq!(judge("client, up", &costs(17), &costs(17)), Vec::<String>::new());
    let said = judge("client, up", &costs(17), &costs(19)).join("\n");
    assert!(
        said.starts_with("client, up: system calls 22, +10.0 %") && said.ends_with("\n    read: 17, now 19"),
        "{said}"
    );
}

#[test]
fn other_tools_are_named_and_what_is_written_is_read() {
    let tools = |rustc: &str| Tools {
        rustc: rustc.to_owned(),
        libc: "glibc 2.36".to_owned(),
        valgrind: "valgrind-3.19.0".to_owned(),
        strace: "strace -- version 6.1".to_owned(),
        cpu: "aes avx".to_owned(),
    };
    let said = advice(&tools("rustc 1").differences(&tools("rustc 2")));
    assert!(said.contains("`rustc 1` then, `rustc 2` here"), "{said}");
    let costs = Costs { instructions: 7, system_calls: [("read".to_owned(), 2)].into() };
    let measured = ["no-op", "echo", "up", "down"].map(|task| (task, costs.clone()));
    let record: Record = toml::from_str(&written("client", &tools("rustc 1"), &measured)).unwrap();
    assert_eq!((record.recorded_with, record.up, record.no_op), (tools("rustc 1"), costs.clone(), costs));
}
