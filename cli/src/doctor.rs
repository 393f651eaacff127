//! `mote doctor`: what this host has and lacks.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use vmm::host::{self, Finding, Severity};

use crate::args::DoctorArgs;
use crate::status::Status;

/// One finding, for scripts.
#[derive(Serialize)]
struct Line<'a> {
    check: &'a str,
    severity: &'a str,
    found: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<&'a str>,
}

/// All of them, and what follows.
#[derive(Serialize)]
struct Report<'a> {
    can_boot_linux: bool,
    findings: Vec<Line<'a>>,
}

/// Looks at the host and prints one line a finding.
pub(crate) fn doctor(args: &DoctorArgs) -> Status {
    let findings = host::examine(Path::new(vmm::DEFAULT_DEVICE));
    let can_boot = findings
        .iter()
        .all(|finding| finding.severity != Severity::Fatal);
    let text = if args.json {
        json(&findings, can_boot)
    } else {
        table(&findings, can_boot)
    };
    // A reader that went away has seen enough.
    let _ = io::stdout().write_all(text.as_bytes());
    if can_boot {
        Status::Success
    } else {
        Status::MoteError
    }
}

fn severity(finding: &Finding) -> &'static str {
    match finding.severity {
        Severity::Good => "ok",
        Severity::Warning => "warning",
        Severity::Fatal => "fatal",
    }
}

fn table(findings: &[Finding], can_boot: bool) -> String {
    let width = findings
        .iter()
        .map(|finding| finding.check.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        text += &format!(
            "{:7}  {:width$}  {}",
            severity(finding),
            finding.check,
            finding.found
        );
        if let Some(advice) = finding.advice {
            text += &format!(" ({advice})");
        }
        text.push('\n');
    }
    text += if can_boot {
        "A Linux guest can boot on this host.\n"
    } else {
        "A Linux guest cannot boot on this host: see the lines marked fatal.\n"
    };
    text
}

fn json(findings: &[Finding], can_boot_linux: bool) -> String {
    let findings = findings
        .iter()
        .map(|finding| Line {
            check: finding.check,
            severity: severity(finding),
            found: &finding.found,
            advice: finding.advice,
        })
        .collect();
    let report = Report {
        can_boot_linux,
        findings,
    };
    // Strings and a boolean: nothing in it can fail to serialize.
    serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"
}
