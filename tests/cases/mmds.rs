//! Metadata that Linux guests read over HTTP.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::Path;

use tests::guest::run_probing;
use tests::network::{in_namespace, ip, serve_tcp, tap};
use vmm_sys_util::tempdir::TempDir;

use crate::Case;

/// Cases that need networks of their own.
pub(crate) const CASES: &[Case] = &[
    ("version_2_on_a_tap", || in_namespace(version_2_on_a_tap)),
    ("version_1_on_the_user_network", || {
        in_namespace(version_1_on_the_user_network);
    }),
];

/// What all scripts begin with: the same 40 KiB as in the file, and how to say anything over HTTP.
const START: &str = r#"
    seq 10000 18191 | tr -d '\n' >expected
    service=169.254.169.254
    say() { printf "$1\r\nConnection: close\r\n\r\n" | nc $service 80; }
"#;

/// The file.
fn metadata(directory: &Path) -> String {
    let large: String = (10_000..=18_191).map(|number| number.to_string()).collect();
    let path = directory.join("metadata.json");
    let json = format!(
        r#"{{"small": "value", "large": "{large}", "tree": {{"leaf": {{"b": "c"}}, "n": 1}}}}"#
    );
    fs::write(&path, json).unwrap();
    path.into_os_string().into_string().unwrap()
}

/// Through a router and without one, on two queues, while other things go on.
fn version_2_on_a_tap() {
    let directory = TempDir::new().unwrap();
    let metadata = metadata(directory.as_path());
    tap("tap0", 1500, true, &["10.9.0.1/24", "169.254.169.254/32"]);
    let stream = serve_tcp("10.9.0.1:5000", 1);
    // The host has the address too, and is not asked.
    let host = TcpListener::bind("169.254.169.254:80").unwrap();
    host.set_nonblocking(true).unwrap();
    let script = r#"
        must_not wget -qO- http://$service/small 2>/dev/null
        say 'GET /small HTTP/1.1' | grep 'HTTP/1.1 401'
        say 'GET /small HTTP/1.1\r\nX-metadata-token: AAAA' | grep 'token not valid'
        token=$(say 'PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 600' | tail -n 1)
        get() { wget -qO- --header "X-metadata-token: $token" "http://$service/$1"; }
        must [ "$(get small)" = value ]
        get large >large
        must cmp large expected
        must_not grep -q 169.254 /proc/net/arp

        ip route add $service dev eth0
        guest-probe tcp client 10.9.0.1:5000 --bytes 8m --mode both || echo NETWORK FAILED &
        for number in $(seq 30); do get large | cmp - expected || echo "FAILED: $number"; done
        wait
        must grep '169.254.169.254 .* 06:01:23:45:67:01' /proc/net/arp
        must ping -c 1 -W 10 10.9.0.1 >/dev/null
        for number in $(seq 40); do get large | cmp - expected || echo "FAILED: $number" & done
        wait
    "#;
    let metadata = format!("{metadata},version=v2");
    let output = run_probing(
        &[
            "--cpus",
            "2",
            "--net",
            "tap=tap0,queues=2",
            "--append",
            "ip=10.9.0.2::10.9.0.1:255.255.255.0::eth0:off",
            "--metadata",
            &metadata,
        ],
        &format!("{START}{script}"),
    );
    assert!(!output.contains("FAILED"), "{output}");
    for text in ["HTTP/1.1 401", "token not valid", "06:01:23:45:67:01"] {
        assert!(output.contains(text), "{output}");
    }
    stream.join().unwrap().unwrap();
    let error = host.accept().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert!(!ip("neigh show dev tap0").contains("169.254"));
}

/// As a server of EC2 would be asked.
fn version_1_on_the_user_network() {
    let directory = TempDir::new().unwrap();
    let metadata = format!("{},version=v1", metadata(directory.as_path()));
    let stream = serve_tcp("127.0.0.1:5000", 1);
    let script = r#"
        must [ "$(wget -qO- http://$service/small)" = value ]
        must [ "$(wget -qO- http://$service//tree/ | tr '\n' ' ')" = 'leaf/ n' ]
        json=$(wget -qO- --header 'Accept: application/json' http://$service/tree)
        must [ "$json" = '{"leaf":{"b":"c"},"n":1}' ]
        must_not wget -qO- http://$service/none 2>/dev/null
        must_not wget -qO- http://$service/tree/n 2>/dev/null
        say 'GET /none HTTP/1.1' | grep 'HTTP/1.1 404'
        say 'DELETE / HTTP/1.1' | grep 'Allow: GET, PUT'
        wget -qO- http://$service/large >large
        must cmp large expected
        must_not nc -w 5 $service 81 </dev/null
        must guest-probe tcp client 10.0.2.2:5000 --bytes 4m --mode both
        must [ "$(wget -qO- http://$service/small)" = value ]
    "#;
    let output = run_probing(
        &[
            "--net",
            "user,mmds=on",
            "--append",
            "ip=dhcp",
            "--metadata",
            &metadata,
        ],
        &format!("{START}{script}"),
    );
    for text in ["HTTP/1.1 404", "Allow: GET, PUT"] {
        assert!(output.contains(text), "{output}");
    }
    stream.join().unwrap().unwrap();
}
