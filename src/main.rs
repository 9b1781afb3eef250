//! parse → dispatch → exit status: the only place that exits.
use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::SUCCESS
}
