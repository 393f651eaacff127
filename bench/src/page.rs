//! A measurement as one page of HTML that needs nothing else: it opens from a disk, and its policy forbids it to ask any network for anything.

mod tables;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::plot::ink::{page_rules, page_variables};
use crate::plot::{EMULATED, Plot, PlotError, Theme, plots};
use crate::record::{Host, Measured, Record, Runtime};

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/script.js");

/// What the page may do: styles and scripts of its own, nothing from elsewhere.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:";

/// The page: tables, plots, commands, the host, how to read them, and the record itself.
///
/// # Errors
///
/// A plot cannot be drawn, or the record is not one that JSON can hold.
pub fn page(record: &Record) -> Result<String, PageError> {
    let plots = plots(record)?;
    let json = serde_json::to_string(record)?;
    let title = match record.measured {
        Measured::Startup(_) => "Start-up of virtual machines and containers",
        Measured::Density(_) => "Density of virtual machines and containers",
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " – mote bench" }
                link rel="icon" href="data:,";
                style { (PreEscaped(style())) }
            }
            body {
                header {
                    h1 { (title) }
                    a #download .button download="mote-bench.json" href="#record" hidden { "Download JSON" }
                    button #theme type="button" title="Switch between light and dark" hidden { "Dark" }
                }
                p.lead { "Measured by mote " (record.mote) " on " (record.host.cpu) ", " (record.began) "." }
                (notices(record))
                main {
                    h2 { "Figures" }
                    (tables::figures(record))
                    h2 { "Plots" }
                    @for plot in &plots { (figure(plot)) }
                    h2 { "How to read this" }
                    (explained(record))
                    h2 { "Commands" }
                    p { "The measurement:" }
                    pre { (tables::quoted(&record.command)) }
                    @for runtime in runtimes(record) { (command(runtime)) }
                    h2 { "Host" }
                    (host(&record.host))
                }
                script #record type="application/json" { (PreEscaped(inert(&json))) }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    Ok(page.into_string())
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// A plot is missing.
    #[error(transparent)]
    Plot(#[from] PlotError),
    /// The record cannot be written as JSON.
    #[error("Cannot write the record as JSON")]
    Json(#[from] serde_json::Error),
}

/// JSON that ends no element of a page: in it `<` is part of strings only.
fn inert(json: &str) -> String {
    json.replace('<', "\\u003c")
}

/// Colours for both themes, then the rules that use them. Paper is light.
fn style() -> String {
    let (light, dark) = (page_variables(Theme::Light), page_variables(Theme::Dark));
    format!(
        ":root{{{light}}}\n\
         @media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}\n\
         @media screen{{:root[data-theme=dark]{{{dark}}}}}\n\
         {}\n{STYLE}",
        page_rules()
    )
}

/// What has to be known before any figure is looked at.
fn notices(record: &Record) -> Markup {
    html! {
        @if let Some(why) = &record.host.emulated {
            div.notice role="note" {
                strong { (EMULATED) }
                "This host is itself emulated (" (why) "): its times are not those of hardware."
            }
        }
        @if record.interrupted {
            div.notice role="note" {
                strong { "INTERRUPTED" }
                "The measurement was ended by a signal: there are fewer runs than were asked for."
            }
        }
    }
}

fn figure(plot: &Plot) -> Markup {
    html! { figure { (PreEscaped(plot.element())) } }
}

fn runtimes(record: &Record) -> Vec<&Runtime> {
    match &record.measured {
        Measured::Startup(startup) => startup.rows.iter().map(|row| &row.runtime).collect(),
        Measured::Density(density) => density.rows.iter().map(|row| &row.runtime).collect(),
    }
}

/// What exactly was executed for one row.
fn command(runtime: &Runtime) -> Markup {
    html! {
        details open {
            summary { strong { (runtime.name) } " – " (runtime.about) }
            pre { (tables::quoted(&runtime.command)) }
            @if !runtime.requests.is_empty() {
                p { "Then asked of its API:" }
                pre { (runtime.requests.join("\n")) }
            }
            @if let Some(what) = &runtime.uncounted {
                p { "Its CPU time and memory leave out: " (what) "." }
            }
        }
    }
}

fn host(host: &Host) -> Markup {
    let none = |fact: &Option<String>, none: &str| fact.clone().unwrap_or_else(|| none.to_owned());
    let cgroup = host.cgroup.map(|version| format!("version {version}"));
    let facts = [
        ("CPU", format!("{}, {} online", host.cpu, host.cpus)),
        ("Memory", format!("{} MiB", host.memory >> 20)),
        ("Kernel", host.kernel.clone()),
        ("KVM", none(&host.kvm, "none")),
        (
            "Frequency governor",
            none(
                &host.governor,
                "none: frequencies are not scaled by the kernel",
            ),
        ),
        (
            "Control groups",
            none(&cgroup, "runs were not counted by any"),
        ),
        ("Emulated", none(&host.emulated, "nothing says so")),
    ];
    html! {
        dl { @for (name, fact) in &facts { dt { (name) } dd { (fact) } } }
    }
}

fn explained(record: &Record) -> Markup {
    match &record.measured {
        Measured::Startup(startup) => html! {
            p {
                "Every runtime starts the same small static program; they take turns, so that what disturbs the host disturbs all. The clock starts just before the "
                "runtime’s process is made. " b { "Output" } " is when the program’s first byte arrives, " b { "exit" } " when the runtime’s exit status does, "
                b { "gone" } " when no process of it is left."
            }
            p {
                "A run counts only if output, status and end are right. Runs that fail are in the table, and never among the times. p50 is the median; 90 and 99 of 100 "
                "runs took at most p90 and p99."
            }
            p {
                "The ratio is a runtime’s median exit time divided by that of " b { (startup.baseline) } ", with the interval that holds it with the confidence given: where "
                "the interval holds 1, the two are not told apart."
            }
            p {
                "The kernel’s trace points, where they were on, take time. What they show (environment, guest, first process) is put into the waterfalls in proportion, "
                "and is in no other figure."
            }
            p {
                "A container shares the host’s kernel. A virtual machine has its own, which is what its start pays for."
            }
        },
        Measured::Density(density) => html! {
            p {
                "Instances that do nothing are added one by one, up to " (density.limit) ". " b { "MemAvailable" } " is what the kernel says new programs could still "
                "have: by how much it falls counts everything, the host kernel’s own memory too. " b { "PSS" } " counts the pages of the runtime’s processes, each shared "
                "page in equal parts to those that share it."
            }
            p {
                "Starts a second are measured apart, with " (density.concurrency) " being started at a time."
            }
        },
    }
}
