//! The page of a measurement in a browser without a screen. `PAGE_SHOTS=FOLDER` has what it shows written there, light and dark.

#[path = "../../bench/tests/shown/synthetic.rs"]
mod synthetic;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use bench::page::page;
use bench::record::Record;
use tests::sandbox::Sandbox;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("says_what_is_wrong", says_what_is_wrong),
    ("of_starts", of_starts),
    ("of_density", of_density),
    ("of_what_is_odd", of_what_is_odd),
    ("on_a_narrow_screen", on_a_narrow_screen),
];

const BROWSER: &str = "chromium";
const CHECKER: &str = include_str!("page/checker.js");
/// What a page begins with, where a theme can be chosen.
const ROOT: &str = "<html lang=\"en\">";

/// Why no page can be looked at.
pub(crate) fn no_browser() -> Option<String> {
    let found = Command::new(BROWSER)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    found.is_err().then(|| format!("no {BROWSER}"))
}

/// What a browser came to with a page.
struct Looked {
    /// The document, once its scripts have run.
    document: String,
    /// What was reported in its console: errors of scripts, and what its policy did not let it load.
    console: Vec<String>,
}

/// Has a page looked at in a window of this size, with more options.
fn browse(sandbox: &Sandbox, page: &str, size: (u32, u32), options: &[String]) -> Looked {
    let file = sandbox.file("page.html", page);
    let profile = sandbox.path("profile");
    let (width, height) = size;
    let ended = Command::new(BROWSER)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
        ])
        .args(["--disable-background-networking", "--no-first-run"])
        .args(["--enable-logging=stderr", "--virtual-time-budget=10000"])
        .arg(format!("--user-data-dir={profile}"))
        .arg(format!("--window-size={width},{height}"))
        .args(options)
        .arg(format!("file://{file}"))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{errors}");
    let console = errors.lines().filter(|line| line.contains(":CONSOLE:"));
    Looked {
        document: String::from_utf8_lossy(&ended.stdout).into_owned(),
        console: console.map(str::to_owned).collect(),
    }
}

/// The page with a script that checks it.
fn with_checker(page: &str) -> String {
    page.replace("</body>", &format!("<script>{CHECKER}</script></body>"))
}

/// What is wrong with a page: the first line says how much was looked at, and how high the page is.
fn checked(sandbox: &Sandbox, page: &str, size: (u32, u32)) -> (String, Looked) {
    let looked = browse(
        sandbox,
        &with_checker(page),
        size,
        &["--dump-dom".to_owned()],
    );
    let found = looked.document.split_once("<output id=\"wrong\">");
    let (_, found) = found.unwrap_or_else(|| panic!("no result; console: {:#?}", looked.console));
    let (found, _) = found.split_once("</output>").unwrap();
    (found.trim().to_owned(), looked)
}

/// Fails unless a browser has nothing to say against the page of this record.
#[track_caller]
fn is_right(case: &str, record: &Record, size: (u32, u32)) {
    let sandbox = Sandbox::new();
    let page = page(record).unwrap();
    let (found, looked) = checked(&sandbox, &page, size);
    assert!(found.ends_with(", 0 wrong"), "{case}: {found}");
    assert!(looked.console.is_empty(), "{case}: {:#?}", looked.console);
    if let Some(folder) = std::env::var_os("PAGE_SHOTS") {
        let height = found
            .split(", ")
            .find_map(|part| part.strip_suffix(" high")?.parse().ok());
        shoot(
            &sandbox,
            &page,
            (size.0, height.unwrap()),
            Path::new(&folder),
            case,
        );
    }
}

/// Writes what a page shows in both themes.
fn shoot(sandbox: &Sandbox, page: &str, size: (u32, u32), folder: &Path, case: &str) {
    fs::create_dir_all(folder).unwrap();
    for theme in ["light", "dark"] {
        let chosen = format!("<html lang=\"en\" data-theme=\"{theme}\">");
        let name = format!("{}-{}-{theme}.png", case.replace(' ', "-"), size.0);
        let path = folder.join(name);
        let option = format!("--screenshot={}", path.display());
        browse(sandbox, &page.replacen(ROOT, &chosen, 1), size, &[option]);
        assert!(path.exists(), "{path:?}");
    }
}

/// The check itself: each thing that it is to find is found.
fn says_what_is_wrong() {
    let good = page(&synthetic::startup(3)).unwrap();
    for (what, with, found) in [
        // A label on top of another one, and one that is nowhere.
        (
            " font-size=\"18\"",
            " dx=\"20\" font-size=\"60\"",
            "overlap",
        ),
        ("<text x=\"20\"", "<text x=\"-20\"", "is cut off"),
        // A series less, a run less.
        (
            "data-series=\"runc\"",
            "data-series=\"other\"",
            "no series runc",
        ),
        ("<circle", "<ellipse", "dots for 3 runs"),
        // Text of the colour of paper.
        ("--i2:#5a636e", "--i2:#eeeeee", "contrast"),
        ("EMULATED HOST", "HOST", "the label of an emulated host"),
        (
            "addEventListener(\"click\"",
            "addEventListener(\"never\"",
            "the button for the theme does nothing",
        ),
    ] {
        assert!(good.contains(what), "{what}");
        let (wrong, _) = checked(&Sandbox::new(), &good.replace(what, with), (1280, 900));
        assert!(wrong.contains(found), "{what}: {wrong}");
    }
    for (added, found) in [
        (
            "<script>undefined_function()</script>",
            "undefined_function is not defined",
        ),
        (
            "<img src=\"http://127.0.0.1:9/x.png\">",
            "Content Security Policy",
        ),
        (
            "<link rel=\"stylesheet\" href=\"file:///etc/hostname\">",
            "Content Security Policy",
        ),
    ] {
        let page = good.replace("</body>", &format!("{added}</body>"));
        let console = checked(&Sandbox::new(), &page, (1280, 900)).1.console;
        assert!(
            console.iter().any(|line| line.contains(found)),
            "{added}: {console:#?}"
        );
    }
}

fn of_starts() {
    is_right("starts", &synthetic::startup(50), (1280, 900));
}

fn of_density() {
    is_right("density", &synthetic::density(), (1280, 900));
}

fn of_what_is_odd() {
    for (case, record) in synthetic::edge_cases() {
        is_right(case, &record, (1280, 900));
    }
}

fn on_a_narrow_screen() {
    is_right("starts", &synthetic::startup(5), (500, 900));
}
