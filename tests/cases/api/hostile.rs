//! Clients that do not behave, of a monitor whose guest runs. Whatever they do, the next client is answered, the guest
//! goes on, nothing of its configuration changes, and no descriptor or thread stays behind.

use std::io::{BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tests::description;
use tests::driven::until;
use tests::executable;
use tests::openmetrics;
use tests::service::{self, Answer, Service, connect, read_answer};
use tests::tiny::code_asm::{ecx, rcx};
use tests::tiny::out;
use vmm_sys_util::tempdir::TempDir;

use super::put_kernel;

/// More clients than are served at a time.
const CROWD: usize = 10_000;
/// A port that nobody listens at.
const NOWHERE: u16 = 0x80;

/// A kernel that writes to a port from time to time, for ever.
fn ticking_kernel() -> Vec<u8> {
    executable::program(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        out(a, NOWHERE, 1)?;
        a.mov(ecx, 10_000)?;
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.dec(rcx)?;
        a.jnz(wait)?;
        a.jmp(again)
    })
}

/// A monitor with a guest that ticks, and how both were before anybody misbehaved.
struct Prey {
    _directory: TempDir,
    service: Service,
    config: Value,
    counts: (usize, usize),
    ticks: f64,
}

impl Prey {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let service = Service::start(directory.as_path(), &[""; 0]);
        let kernel = directory.as_path().join("ticking");
        std::fs::write(&kernel, ticking_kernel()).unwrap();
        put_kernel(&service, &kernel);
        let user = json!({"iface_id": "e", "backend": "user"});
        service.put("/network-interfaces/e", user);
        service.put(
            "/mmds/config",
            json!({"network_interfaces": ["e"], "version": "V2"}),
        );
        service.put("/mmds", json!({"a": 1}));
        service.act("InstanceStart");
        let mut prey = Self {
            config: service.get("/vm/config"),
            _directory: directory,
            service,
            counts: (0, 0),
            ticks: 0.0,
        };
        prey.ticks = prey.ticks();
        // Connections that were closed may be there for a moment.
        let mut last = prey.counts();
        let mut same = 0;
        prey.counts = until("rest", || {
            let before = std::mem::replace(&mut last, prey.counts());
            same = if before == last { same + 1 } else { 0 };
            (same == 5).then_some(last)
        });
        prey
    }

    fn socket(&self) -> &Path {
        self.service.socket()
    }

    /// How often the guest was at its port.
    fn ticks(&self) -> f64 {
        let text = self.service.get("/metrics");
        let samples = openmetrics::parse(text.as_str().unwrap()).unwrap();
        let exits = &samples["mote_vcpu_exits_total"];
        let of_ports = exits
            .iter()
            .filter(|(labels, _)| labels["cause"] == "io_out");
        of_ports.map(|(_, count)| count).sum()
    }

    /// Descriptors and threads of the monitor.
    fn counts(&self) -> (usize, usize) {
        let pid = self.service.pid().as_raw_nonzero();
        let count = |what| {
            std::fs::read_dir(format!("/proc/{pid}/{what}"))
                .unwrap()
                .count()
        };
        (count("fd"), count("task"))
    }

    /// Fails unless all is as if nobody had come.
    #[track_caller]
    fn check(&mut self, what: &str) {
        eprintln!("after {what}");
        assert_eq!(self.service.state(), "Running", "after {what}");
        assert_eq!(self.service.get("/vm/config"), self.config, "after {what}");
        assert_eq!(self.service.get("/mmds"), json!({"a": 1}), "after {what}");
        let before = self.ticks;
        self.ticks = until("a tick of the guest", || {
            let ticks = self.ticks();
            (ticks > before).then_some(ticks)
        });
        let (descriptors, threads) = self.counts;
        until("as few descriptors and threads as before", || {
            let (now, threads_now) = self.counts();
            (now <= descriptors && threads_now <= threads).then_some(())
        });
    }

    fn end(self) {
        assert_eq!(self.service.terminate().status, 143);
    }
}

/// A connection, as long as it lasts.
struct Client(BufReader<UnixStream>);

impl Client {
    fn new(prey: &Prey) -> Self {
        Self(BufReader::new(connect(prey.socket())))
    }

    /// Sends; a monitor that listens no more may have said so already.
    fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.get_mut().write_all(bytes.as_ref()).is_ok()
    }

    /// An answer that the description has.
    #[track_caller]
    fn answer(&mut self, method: &str, path: &str) -> Answer {
        let answer = read_answer(&mut self.0);
        description::check(method, path, &answer);
        answer
    }

    /// A fault with one of these statuses, and the connection's end.
    #[track_caller]
    fn expect_refusal(&mut self, statuses: &[u16]) -> String {
        let answer = self.answer("GET", "/");
        assert!(statuses.contains(&answer.status), "{answer:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
        self.expect_end();
        answer.body["fault_message"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn expect_end(&mut self) {
        let mut rest = Vec::new();
        // A reset is an end as well.
        let _ = self.0.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
    }
}

fn put(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "PUT {path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// What is no HTTP, or no JSON, or has no end.
pub(super) fn nonsense() {
    let mut prey = Prey::new();
    let lines: [&[u8]; 10] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/7.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",
        b"GET / HTTP/1.1\r\nName: x\x00y\r\n\r\n",
        b"GET /\xff\xfe\xfd HTTP/1.1\r\n\r\n",
        b"PUT /mmds HTTP/1.1\r\nContent-Length: two\r\n\r\n{}",
        b"PUT /mmds HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"PUT /mmds HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
    ];
    for line in lines {
        let mut client = Client::new(&prey);
        client.send(line);
        client.expect_refusal(&[400]);
    }
    prey.check("what is no HTTP");

    // Noise has no answer that it could expect.
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    for length in [1, 7, 100, 5000, 70_000] {
        let mut client = Client::new(&prey);
        let bytes: Vec<u8> = (0..length)
            .map(|_| {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                noise.to_le_bytes()[3]
            })
            .collect();
        client.send(bytes);
    }
    prey.check("noise");

    for (start, more) in [
        ("GET / HTTP/1.1\r\nName: ", "x".repeat(1024)),
        ("GET / HTTP/1.1\r\n", "Name: x\r\n".repeat(100)),
        ("GET /", "x".repeat(1024)),
    ] {
        let mut client = Client::new(&prey);
        client.send(start);
        let mut sent = 0;
        while sent < 1000 && client.send(&more) {
            sent += 1;
        }
        client.expect_refusal(&[414, 431]);
    }
    prey.check("heads without an end");

    // The connection is as good as before.
    let mut client = Client::new(&prey);
    for body in [
        "[".repeat(50_000).into_bytes(),
        "{\"a\":".repeat(10_000).into_bytes(),
        b"{\"a\": \"\xff\xfe\"}".to_vec(),
        b"\xff\xfe{}".to_vec(),
        b"{\"a\": 1}}".to_vec(),
        b"{\"a\": \"\\ud800\"}".to_vec(),
    ] {
        client.send(put("/mmds", &body));
        assert_eq!(
            client.answer("PUT", "/mmds").status,
            400,
            "{:?}",
            String::from_utf8_lossy(&body)
        );
    }
    client.send(GET);
    assert_eq!(client.answer("GET", "/").status, 200);
    drop(client);
    prey.check("what is no JSON, or deep");
    prey.end();
}

/// Bodies of another length than they say.
pub(super) fn lies() {
    let mut prey = Prey::new();
    // More than there may be is refused by what it says, and what comes all the same is no request.
    for length in [51_201, u64::from(u32::MAX), u64::MAX / 2] {
        let mut client = Client::new(&prey);
        client.send(format!(
            "PUT /mmds HTTP/1.1\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
        ));
        client.send("{}".repeat(10_000));
        let message = client.expect_refusal(&[400]);
        assert!(message.contains("51200"), "{message}");
    }
    // This is a length that the HTTP library does not take for one.
    let mut client = Client::new(&prey);
    let length = u64::MAX;
    client.send(format!(
        "PUT /mmds HTTP/1.1\r\nContent-Length: {length}\r\n\r\n"
    ));
    client.expect_refusal(&[400, 431]);
    let mut client = Client::new(&prey);
    client.send("PUT /mmds HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..60 {
        client.send(format!("400\r\n{}\r\n", "x".repeat(1024)));
    }
    client.expect_refusal(&[413]);
    prey.check("bodies that are too large");

    // More than it says: the rest is no request.
    let mut client = Client::new(&prey);
    client.send("PUT /mmds HTTP/1.1\r\nContent-Length: 7\r\n\r\n{\"a\":1}}\r\n\r\n");
    assert_eq!(client.answer("PUT", "/mmds").status, 204);
    client.expect_refusal(&[400]);
    // Less: it is never complete, and whoever sends no more is told so.
    let mut client = Client::new(&prey);
    client.send("PUT /mmds HTTP/1.1\r\nContent-Length: 100\r\n\r\n{\"a\":2}");
    client.0.get_ref().shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    let _ = client.0.read_to_end(&mut rest);
    let rest = String::from_utf8(rest).unwrap();
    assert!(
        rest.is_empty() || rest.starts_with("HTTP/1.1 400"),
        "{rest:?}"
    );
    // Or nobody is there any more.
    for sent in ["", "{", "{\"a\":2}"] {
        let mut client = Client::new(&prey);
        client.send(format!(
            "PUT /mmds HTTP/1.1\r\nContent-Length: 8\r\n\r\n{sent}"
        ));
    }
    prey.check("bodies of another length");
    prey.end();
}

/// Clients that are killed, that go away, that send all at once, or nothing any more.
pub(super) fn deaths() {
    let mut prey = Prey::new();
    let requests = [
        "GET / HT",
        "PUT /mmds HTTP/1.1\\r\\nContent-Length: 100\\r\\n\\r\\n{",
        "PUT /mmds HTTP/1.1\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n5\\r\\n{",
        "GET / HTTP/1.1\\r\\n\\r\\n",
        "GET /metrics HTTP/1.1\\r\\n\\r\\n",
        "GET /events HTTP/1.1\\r\\n\\r\\n",
        "GET /console HTTP/1.1\\r\\nConnection: Upgrade\\r\\nUpgrade: mote-console\\r\\n\\r\\n",
    ];
    for request in requests {
        // The only one who has the connection is the process that is killed.
        let connection: OwnedFd = connect(prey.socket()).into();
        let mut client = Command::new("sh");
        client
            .args(["-c", "printf \"$0\"; kill -9 $$", request])
            .stdin(Stdio::null())
            .stdout(Stdio::from(connection));
        let mut client = client.spawn().unwrap();
        assert_eq!(client.wait().unwrap().signal(), Some(9), "{request}");
    }
    prey.check("clients that are killed");

    for request in requests {
        let request = request.replace("\\r\\n", "\r\n");
        Client::new(&prey).send(request);
    }
    let mut deaf = Client::new(&prey);
    for _ in 0..20 {
        deaf.send("GET /openapi.json HTTP/1.1\r\n\r\n");
    }
    assert_eq!(prey.service.state(), "Running");
    drop(deaf);
    prey.check("clients that go away");

    // All at once; the answers are in order.
    let mut client = Client::new(&prey);
    let mut all = Vec::new();
    for _ in 0..100 {
        all.extend(GET.as_bytes());
        all.extend(put("/mmds", b"{\"a\":1}"));
        all.extend(b"GET /mmds HTTP/1.1\r\n\r\nDELETE /nowhere HTTP/1.1\r\n\r\n");
    }
    client.send(all);
    // Half of the connection is closed: answers come all the same, and then its end.
    client.0.get_ref().shutdown(Shutdown::Write).unwrap();
    for _ in 0..100 {
        assert_eq!(client.answer("GET", "/").body["state"], "Running");
        assert_eq!(client.answer("PUT", "/mmds").status, 204);
        assert_eq!(client.answer("GET", "/mmds").body, json!({"a": 1}));
        assert_eq!(client.answer("DELETE", "/nowhere").status, 400);
    }
    client.expect_end();
    // The same of one that says nothing at all, and of a stream, which has no end of its own.
    let mut silent = Client::new(&prey);
    silent.0.get_ref().shutdown(Shutdown::Write).unwrap();
    silent.expect_end();
    let (_, stream) = service::open(prey.socket(), "/events", "");
    stream.get_ref().shutdown(Shutdown::Write).unwrap();
    drop(stream);
    prey.check("clients that close a half");
    prey.end();
}

/// Far more clients than are served.
pub(super) fn crowd() {
    let mut prey = Prey::new();
    let mut first = Client::new(&prey);
    first.send(GET);
    assert_eq!(first.answer("GET", "/").status, 200);
    let mut clients: Vec<UnixStream> = Vec::new();
    while clients.len() < CROWD {
        match UnixStream::connect(prey.socket()) {
            Ok(client) => clients.push(client),
            // This process may have fewer descriptors than that.
            Err(error) => {
                assert!(
                    clients.len() > 2000,
                    "{} connections: {error}",
                    clients.len()
                );
                break;
            }
        }
    }
    // Who is served is served on, and of the others each is told.
    for _ in 0..100 {
        first.send(GET);
        assert_eq!(first.answer("GET", "/").status, 200);
    }
    let last = clients.pop().unwrap();
    let mut last = Client(BufReader::new(last));
    let message = last.expect_refusal(&[503]);
    assert!(message.contains("connections"), "{message}");
    until("descriptors of those who are served only", || {
        (prey.counts().0 < prey.counts.0 + 1100).then_some(())
    });
    drop((first, last, clients));
    // Those who leave make room, in a moment.
    until("room", || {
        let mut client = Client::new(&prey);
        client.send(GET);
        (client.answer("GET", "/").status == 200).then_some(())
    });
    prey.check("a crowd");
    prey.end();
}

/// A byte a second, and less. What a request may take is 30 seconds, and no flag changes that.
pub(super) fn slowness() {
    let mut prey = Prey::new();
    let starts = [
        "GET / HTTP/1.1\r\nName: ",
        "PUT /mmds HTTP/1.1\r\nContent-Length: 10000\r\n\r\n",
        "PUT /mmds HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2000\r\n",
        "",
    ];
    let mut drips: Vec<Client> = starts
        .iter()
        .map(|start| {
            let mut client = Client::new(&prey);
            client.send(start);
            client
        })
        .collect();
    let mut silent = Client::new(&prey);
    silent.send("G");
    let mut idle = Client::new(&prey);
    idle.send(GET);
    assert_eq!(idle.answer("GET", "/").status, 200);
    // Until none is heard any more.
    loop {
        let mut heard = 0;
        for drip in &mut drips {
            heard += usize::from(drip.send("x"));
        }
        if heard == 0 {
            break;
        }
        assert_eq!(prey.service.state(), "Running");
        thread::sleep(Duration::from_secs(1));
    }
    for client in drips.iter_mut().chain([&mut silent]) {
        let message = client.expect_refusal(&[400]);
        assert!(message.contains("30 seconds"), "{message}");
    }
    // Who asks for nothing has all the time there is.
    idle.send(GET);
    assert_eq!(idle.answer("GET", "/").status, 200);
    drop((drips, silent, idle));
    prey.check("slow clients");
    prey.end();
}
