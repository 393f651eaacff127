use super::*;

#[test]
fn resolvers_are_read_in_order() {
    let text = "# nameserver 9.9.9.9\n; x\nnameserver\t1.1.1.1 # y\n  nameserver 2606:4700::1\n\
        nameserver nonsense\nnameserver\noptions ndots:1\nnameserver fe80::1%3\nnameserver 4.4.4.4\n";
    let found = parse(text, 53);
    let expected = [
        "1.1.1.1:53".parse().unwrap(),
        "[2606:4700::1]:53".parse().unwrap(),
        SocketAddrV6::new("fe80::1".parse().unwrap(), 53, 0, 3).into(),
    ];
    assert_eq!(found, expected);
    assert_eq!(scope_id("lo"), Some(1));
    assert_eq!(scope_id("../lo"), None);
    assert_eq!(scope_id("no/such"), None);
}

#[test]
fn a_changed_file_is_read_again() {
    let path = std::env::temp_dir().join(format!("mote-resolver-{}", std::process::id()));
    fs::write(&path, "nameserver 1.1.1.1\nnameserver 2.2.2.2").unwrap();
    let config = super::super::Config {
        resolv_conf: path.clone(),
        ..Default::default()
    };
    let mut shared = Shared::new(config).unwrap();
    let mut resolver = Resolver::default();
    let first = resolver.address(&shared);
    assert_eq!(first, "1.1.1.1:53".parse().unwrap());
    resolver.failed(first);
    assert_eq!(resolver.address(&shared), "2.2.2.2:53".parse().unwrap());
    // One that failed before is not held against its successor.
    resolver.failed(first);
    assert_eq!(resolver.address(&shared), "2.2.2.2:53".parse().unwrap());
    fs::write(&path, "nameserver 3.3.3.3").unwrap();
    assert_eq!(resolver.address(&shared), "2.2.2.2:53".parse().unwrap());
    shared.now += LOOK_INTERVAL;
    assert_eq!(resolver.address(&shared), "3.3.3.3:53".parse().unwrap());
    fs::remove_file(&path).unwrap();
    shared.now += LOOK_INTERVAL;
    assert_eq!(resolver.address(&shared), "127.0.0.1:53".parse().unwrap());
}
