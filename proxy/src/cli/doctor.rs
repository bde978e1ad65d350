//! `sluice doctor`: every prerequisite, found or missing, and what to do; and what the threads of a running Sluice hold.

use std::io::IsTerminal as _;

use comfy_table::{ContentArrangement, Table, presets};

use crate::cli::{exit, say};
use crate::preflight::{self, Finding, Need};
use crate::running;
use crate::watch::BypassSource;

/// Columns where there is no terminal to measure.
const COLUMNS: u16 = 120;

/// Prints the table, or JSON. Fine when nothing required is missing.
pub fn run(json: bool, source: BypassSource) -> u8 {
    let mut findings = preflight::for_source(source);
    findings.extend(running::findings());
    if json {
        match serde_json::to_string_pretty(&findings) {
            Ok(text) => say(&text),
            Err(error) => {
                eprintln!("sluice: {error}");
                return exit::INTERNAL;
            }
        }
    } else {
        say(&table(&findings));
    }
    if findings.iter().any(Finding::is_fatal) { exit::UNAVAILABLE } else { exit::OK }
}

/// The findings as a table, remedies below what is missing.
pub fn table(findings: &[Finding]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if !std::io::stdout().is_terminal() {
        table.set_width(COLUMNS);
    }
    table.set_header(["prerequisite", "", "seen"]);
    for finding in findings {
        let mark = match (finding.ok, finding.need) {
            (true, _) => "ok",
            (false, Need::Required) => "MISSING",
            (false, Need::Optional) => "degraded",
        };
        let seen = match &finding.remedy {
            Some(remedy) if !finding.ok => format!("{}\n→ {remedy}", finding.detail),
            _ => finding.detail.clone(),
        };
        table.add_row([finding.name.as_str(), mark, &seen]);
    }
    table.to_string()
}
