//! Records as they are shown: pictures and pages.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod synthetic;

use std::fs;

use bench::page::page;
use bench::plot::{EMULATED, Plot, Theme, plots, write_pngs, write_svgs};
use bench::record::{Measured, Record};
use roxmltree::{Document, ParsingOptions};
use tiny_skia::Pixmap;

/// All records to be shown.
fn records() -> Vec<(&'static str, Record)> {
    let mut records = synthetic::edge_cases();
    records.extend([
        ("starts", synthetic::startup(20)),
        ("density", synthetic::density()),
    ]);
    records
}

fn names(record: &Record) -> Vec<String> {
    match &record.measured {
        Measured::Startup(startup) => startup
            .rows
            .iter()
            .map(|row| row.runtime.name.clone())
            .collect(),
        Measured::Density(density) => density
            .rows
            .iter()
            .map(|row| row.runtime.name.clone())
            .collect(),
    }
}

/// The name as XML can hold it.
fn shown(name: &str) -> String {
    name.replace(char::is_control, "\u{fffd}")
}

/// Looks through every picture of a record as XML.
fn each_plot(record: &Record, look: impl Fn(&Plot, &Document)) {
    for plot in plots(record).unwrap() {
        let svg = plot.svg();
        let document = Document::parse_with_options(&svg, ParsingOptions::default());
        look(
            &plot,
            &document.unwrap_or_else(|why| panic!("{}: {why}\n{svg}", plot.name)),
        );
    }
}

#[test]
fn pictures_are_well_formed_and_finite() {
    for (case, record) in records() {
        each_plot(&record, |plot, document| {
            for element in document.descendants() {
                for attribute in element.attributes() {
                    // Names may hold anything.
                    if !attribute.name().starts_with("data-") {
                        let value = attribute.value();
                        assert!(
                            !value.contains("NaN") && !value.contains("inf"),
                            "{case} {} {value}",
                            plot.name
                        );
                    }
                }
                let name = element.tag_name().name();
                let known = [
                    "svg", "style", "g", "title", "rect", "path", "circle", "text", "",
                ];
                assert!(known.contains(&name), "{case} {} has <{name}>", plot.name);
            }
        });
    }
}

#[test]
fn pictures_have_every_runtime() {
    for (case, record) in records() {
        let expected = names(&record);
        each_plot(&record, |plot, document| {
            for name in &expected {
                let of_it = |element: &roxmltree::Node| {
                    element.attribute("data-series") == Some(&shown(name))
                };
                let series = document.descendants().find(of_it);
                let series = series.unwrap_or_else(|| panic!("{case} {}: no {name}", plot.name));
                let title = series.first_element_child().and_then(|title| title.text());
                assert!(
                    title.is_some_and(|title| title.starts_with(&shown(name))),
                    "{case} {title:?}"
                );
            }
        });
    }
}

#[test]
fn pictures_of_an_emulated_host_say_so() {
    for (case, record) in records() {
        each_plot(&record, |plot, document| {
            let says = document
                .descendants()
                .any(|element| element.text() == Some(EMULATED));
            assert_eq!(says, record.host.emulated.is_some(), "{case} {}", plot.name);
        });
    }
}

/// The elements of one name in a runtime's group.
fn count(document: &Document, series: &str, element: &str) -> usize {
    let group = document
        .descendants()
        .find(|element| element.attribute("data-series") == Some(series))
        .unwrap();
    group
        .descendants()
        .filter(|inner| inner.has_tag_name(("http://www.w3.org/2000/svg", element)))
        .count()
}

#[test]
fn every_run_is_a_mark() {
    each_plot(&synthetic::startup(20), |plot, document| {
        let text = |text: &str| {
            document
                .descendants()
                .any(|element| element.text() == Some(text))
        };
        match plot.name {
            "exit" => {
                assert_eq!(count(document, "crun", "circle"), 20);
                // Each of two strokes, and the median's tick.
                assert_eq!(count(document, "podman", "circle"), 19);
                assert_eq!(count(document, "podman", "path"), 3);
                assert_eq!(count(document, "ctr", "circle"), 0);
                assert!(
                    text("1 of 20 failed") && text("2 of 20 failed") && text("all 20 runs failed")
                );
            }
            "cumulative" => {
                assert_eq!(count(document, "crun", "path"), 2);
                assert!(text("all 20 runs failed"));
            }
            "waterfall" => {
                // Twice each: to one scale, and as a share.
                assert_eq!(count(document, "process", "rect"), 2 * 4);
                assert_eq!(count(document, "crun", "rect"), 2 * 6);
                assert_eq!(count(document, "mote-cold", "rect"), 2 * 7);
                assert!(text("from traced runs, scaled to this one"));
                assert!(text("all 20 runs failed"));
            }
            "resources" => {
                assert_eq!(count(document, "crun", "rect"), 1);
                assert!(text("all 20 runs failed"));
            }
            _ => assert_eq!(plot.name, "output"),
        }
    });
    each_plot(&synthetic::density(), |plot, document| match plot.name {
        "memory" => {
            assert_eq!(count(document, "process", "path"), 1);
            assert_eq!(count(document, "crun", "path"), 2);
        }
        "latency" => assert_eq!(count(document, "crun", "path"), 1),
        _ => {
            assert_eq!(count(document, "crun", "rect"), 1);
            assert_eq!(count(document, "runc", "rect"), 0);
            assert!(
                document
                    .descendants()
                    .any(|element| element.text() == Some("3 failed"))
            );
        }
    });
}

#[test]
fn the_same_record_gives_the_same_picture() {
    let record = synthetic::startup(5);
    let svgs = |record| {
        plots(record)
            .unwrap()
            .iter()
            .map(Plot::svg)
            .collect::<Vec<_>>()
    };
    assert_eq!(svgs(&record), svgs(&record));
}

#[test]
fn files_are_written_and_rendered() {
    let folder = std::env::temp_dir().join(format!("mote-bench-shown-{}", std::process::id()));
    let record = synthetic::density();
    let inner = folder.join("made/as/needed");
    let svgs = write_svgs(&record, &inner).unwrap();
    let names: Vec<_> = svgs
        .iter()
        .filter_map(|path| path.file_name()?.to_str())
        .collect();
    assert_eq!(names, ["memory.svg", "latency.svg", "rate.svg"]);
    for theme in [Theme::Light, Theme::Dark] {
        for path in write_pngs(&record, &inner, theme).unwrap() {
            let picture = Pixmap::decode_png(&fs::read(&path).unwrap()).unwrap();
            assert_eq!(picture.width(), 1920, "{path:?}");
            let pixels = picture.pixels();
            let paper = pixels[0];
            let bright = paper.red() > 200;
            assert_eq!(
                (paper.alpha(), bright),
                (255, theme == Theme::Light),
                "{path:?}"
            );
            let drawn = pixels.iter().filter(|pixel| **pixel != paper).count();
            assert!(
                drawn > 20_000,
                "{path:?} has {drawn} pixels that are not paper"
            );
            // Text is there, not boxes or nothing: somewhere below the title's top, in its line.
            let title = |x: u32, y: u32| picture.pixel(x, y).is_some_and(|pixel| pixel != paper);
            let inked = (40..400).flat_map(|x| (50..80).map(move |y| (x, y)));
            let inked = inked.filter(|&(x, y)| title(x, y)).count();
            assert!((300..5000).contains(&inked), "{path:?}: {inked}");
        }
    }
    // A file is in the way of the folder.
    let failed = write_svgs(&record, &svgs[0]).unwrap_err();
    assert!(
        failed.to_string().starts_with("Cannot write \""),
        "{failed}"
    );
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn pages_hold_their_record_and_no_markup_of_others() {
    for (case, record) in records() {
        let page = page(&record).unwrap();
        let (_, json) = page
            .split_once("<script id=\"record\" type=\"application/json\">")
            .unwrap();
        let (json, after) = json.split_once("</script>").unwrap();
        let own = serde_json::to_string(&record).unwrap();
        assert!(json.replace("\\u003c", "<") == own, "{case}: {json}");
        assert!(
            serde_json::from_str::<Record>(json).is_ok(),
            "{case}: {json}"
        );
        assert_eq!(after.matches("<script").count(), 1, "{case}");
        assert_eq!(page.matches("<script").count(), 2, "{case}");
        assert!(
            !page.contains("<img") && !page.contains("http://e"),
            "{case}"
        );
        assert_eq!(
            page.contains(EMULATED),
            record.host.emulated.is_some(),
            "{case}"
        );
        assert_eq!(page.contains("INTERRUPTED"), record.interrupted, "{case}");
        for missing in &record.missing {
            assert!(page.contains(&missing.name), "{case}");
        }
    }
}

#[test]
fn pages_are_small() {
    let page = page(&synthetic::startup(50)).unwrap();
    assert!(page.len() < 1_000_000, "{}", page.len());
}
