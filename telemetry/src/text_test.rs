use super::*;

#[path = "../../tests/src/openmetrics.rs"]
#[expect(unreachable_pub, reason = "public in the crate that it is of")]
pub(crate) mod openmetrics;

use openmetrics::parse;

#[test]
fn each_kind_is_written_as_it_should_be() {
    let mut text = Text::default();
    text.family("a", Kind::Counter, "Some.").sample(&[], 1);
    text.family("b_bytes", Kind::Gauge, "Some.")
        .sample(&[("x", "y"), ("z", "a\\b\"c\nd")], 2);
    text.family("c", Kind::Info, "Some.")
        .sample(&[("v", "1")], 1);
    let mut states = text.family("d", Kind::StateSet, "Some.");
    states.state("Not started", false);
    states.state("Running", true);
    text.family("e_seconds", Kind::Histogram, "Some.")
        .histogram(&[("x", "y")], &[0.001, 1.0], &[1, 2, 3], 2.5);
    text.family("unused", Kind::Counter, "Some.");
    let text = text.finish();
    assert_eq!(
        text,
        r##"# TYPE a counter
# HELP a Some.
a_total 1
# TYPE b_bytes gauge
# UNIT b_bytes bytes
# HELP b_bytes Some.
b_bytes{x="y",z="a\\b\"c\nd"} 2
# TYPE c info
# HELP c Some.
c_info{v="1"} 1
# TYPE d stateset
# HELP d Some.
d{d="Not started"} 0
d{d="Running"} 1
# TYPE e_seconds histogram
# UNIT e_seconds seconds
# HELP e_seconds Some.
e_seconds_bucket{x="y",le="0.001"} 1
e_seconds_bucket{x="y",le="1.0"} 3
e_seconds_bucket{x="y",le="+Inf"} 6
e_seconds_count{x="y"} 6
e_seconds_sum{x="y"} 2.5
# EOF
"##
    );
    let samples = parse(&text).unwrap();
    assert_eq!(samples["b_bytes"][0].0["z"], "a\\b\"c\nd");
}

#[test]
fn the_reader_of_these_tests_takes_nothing_else() {
    for wrong in [
        "",
        "a 1\n# EOF\n",
        "# TYPE a counter\na 1\n# EOF\n",
        "# TYPE a counter\na_total -1\n# EOF\n",
        "# TYPE a counter\na_total 1\na_total 2\n# EOF\n",
        "# TYPE a gauge\n# TYPE a gauge\n# EOF\n",
        "# TYPE a gauge\na{x=\"1} 1\n# EOF\n",
        "# TYPE a gauge\na{x=\"1\",x=\"2\"} 1\n# EOF\n",
        "# TYPE a gauge\n# UNIT a bytes\na 1\n# EOF\n",
        "# TYPE a gauge\na  1\n# EOF\n",
        "# TYPE a gauge\n\n# EOF\n",
        "# TYPE a histogram\na_bucket{le=\"+Inf\"} 1\na_count 2\na_sum 1\n# EOF\n",
        "# TYPE a histogram\na_bucket{le=\"1\"} 1\na_count 1\na_sum 1\n# EOF\n",
        "# TYPE a gauge\na 1\n# EOF\n# EOF\n",
    ] {
        assert!(parse(wrong).is_err(), "{wrong:?}");
    }
}
