//! What is written from the table of commands and options, and from the list of codes: parts of tstunnel(1), of the README and of
//! the shells' completions. `make pages` writes them; these tests fail where a committed file says something else, or names what
//! isn't there. And the recording that the README shows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

#[path = "pages/bash.rs"]
mod bash;
#[path = "pages/fish.rs"]
mod fish;
#[path = "pages/manual.rs"]
mod manual;
#[path = "pages/mdoc.rs"]
mod mdoc;
#[path = "pages/named.rs"]
mod named;
#[path = "pages/offers.rs"]
mod offers;
#[path = "pages/part.rs"]
mod part;
#[path = "pages/readme.rs"]
mod readme;
#[path = "pages/recording.rs"]
mod recording;
#[path = "pages/shells.rs"]
mod shells;
#[path = "pages/zsh.rs"]
mod zsh;

use part::hold;

/// The file below the project's folder.
pub(crate) fn project(path: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(project(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_manual_page_is_what_the_table_says() {
    hold("man/tstunnel.1", ".\\\"", &manual::parts());
}

#[test]
fn the_completions_for_bash_are_what_the_table_says() {
    hold("packaging/completions/tstunnel.bash", "#", &bash::parts());
}

#[test]
fn the_completions_for_zsh_are_what_the_table_says() {
    hold("packaging/completions/_tstunnel", "#", &zsh::parts());
}

#[test]
fn the_completions_for_fish_are_what_the_table_says() {
    hold("packaging/completions/tstunnel.fish", "#", &fish::parts());
}

#[test]
fn the_readmes_table_of_codes_is_what_the_table_says() {
    hold("README.md", "<!--", &readme::parts());
}
