use super::*;

fn policy(rules: &[&str]) -> Policy {
    Policy::new(rules.iter().map(|rule| rule.parse().unwrap()).collect())
}

fn allows(policy: &Policy, destination: &str) -> bool {
    let destination: std::net::SocketAddr = destination.parse().unwrap();
    policy.allows(destination.ip(), Some(destination.port()))
}

fn error(rule: &str) -> String {
    rule.parse::<Rule>().unwrap_err().to_string()
}

#[test]
fn no_rules_allow_everything() {
    let policy = policy(&[]);
    assert!(allows(&policy, "1.2.3.4:80"));
    assert!(allows(&policy, "[2001:db8::1]:80"));
    assert!(policy.allows("1.2.3.4".parse().unwrap(), None));
    assert!(policy.allows_dns("10.0.2.3".parse().unwrap()));
}

#[test]
fn none_closes_everything_but_what_is_allowed_besides() {
    let dns = "10.0.2.3".parse().unwrap();
    let none = policy(&["allow=none"]);
    assert!(!allows(&none, "1.2.3.4:80"));
    assert!(!allows(&none, "[2001:db8::1]:80"));
    assert!(!none.allows_dns(dns));

    let some = policy(&["allow=none", "allow=1.2.3.4:80", "allow=10.0.2.3:53"]);
    assert!(allows(&some, "1.2.3.4:80"));
    assert!(!allows(&some, "1.2.3.4:81"));
    assert!(some.allows_dns(dns));
}

#[test]
fn a_list_closes_the_rest_but_not_dns() {
    let policy = policy(&["allow=10.0.0.0/8:443+8000-8010", "allow=[2001:db8::]/32"]);
    assert!(allows(&policy, "10.255.0.1:443"));
    assert!(allows(&policy, "10.255.0.1:8010"));
    assert!(!allows(&policy, "10.255.0.1:8011"));
    assert!(!allows(&policy, "11.0.0.1:443"));
    assert!(allows(&policy, "[2001:db8:ffff::1]:1"));
    assert!(!allows(&policy, "[2001:db9::1]:1"));
    assert!(policy.allows("2001:db8::1".parse().unwrap(), None));
    assert!(
        !policy.allows("10.0.0.1".parse().unwrap(), None),
        "has no ports"
    );
    assert!(policy.allows_dns("10.0.2.3".parse().unwrap()));
}

#[test]
fn the_most_specific_rule_decides_in_any_order() {
    let rules = [
        "deny=10.0.0.0/8",
        "allow=10.1.0.0/16",
        "deny=10.1.2.0/24:25",
        "allow=*:53",
        "deny=0.0.0.0/0:53",
    ];
    for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]] {
        let policy = policy(&order.map(|index| rules[index]));
        assert!(!allows(&policy, "10.0.0.1:80"));
        assert!(allows(&policy, "10.1.2.3:80"));
        assert!(!allows(&policy, "10.1.2.3:25"));
        assert!(allows(&policy, "10.1.3.3:25"));
        assert!(!allows(&policy, "9.9.9.9:53"), "* is below /0");
        assert!(allows(&policy, "[2620:fe::fe]:53"));
    }
}

#[test]
fn of_equals_deny_decides_and_ports_are_more_specific() {
    let equal = policy(&["allow=1.1.1.1", "deny=1.1.1.1"]);
    assert!(!allows(&equal, "1.1.1.1:80"));
    let ports = policy(&["allow=1.1.1.1:80", "deny=1.1.1.1"]);
    assert!(allows(&ports, "1.1.1.1:80"));
    assert!(!allows(&ports, "1.1.1.1:81"));
    let only_denied = policy(&["deny=169.254.169.254"]);
    assert!(allows(&only_denied, "1.1.1.1:80"));
    assert!(!allows(&only_denied, "169.254.169.254:80"));
}

#[test]
fn rules_read_back() {
    for rule in [
        "allow=none",
        "allow=*",
        "deny=*:25",
        "allow=10.0.0.0/8:80-90+443",
        "deny=1.2.3.4",
        "allow=[2001:db8::]/32:443",
        "deny=[::1]",
        "deny=0.0.0.0/0",
        "deny=[::]/0",
    ] {
        assert_eq!(rule.parse::<Rule>().unwrap().to_string(), rule);
    }
    assert_eq!(
        "allow=1.2.3.4/32:*".parse::<Rule>().unwrap().to_string(),
        "allow=1.2.3.4"
    );
}

#[test]
fn what_is_wrong_is_said() {
    assert!(error("permit=1.2.3.4").contains("neither allow=… nor deny=…"));
    assert!(error("deny=none").contains("'none' is not an IP address"));
    assert!(error("allow=").contains("'' is not an IP address"));
    assert!(error("allow=2001:db8::1").contains("is not an IP address"));
    assert!(error("allow=[10.0.0.1]").contains("is not an IP address"));
    assert!(error("allow=10.0.0.0/33").contains("'33' is not a prefix length up to 32"));
    assert!(error("allow=10.0.0.0/").contains("is not a prefix length"));
    assert!(error("allow=10.0.0.0/+8").contains("is not a prefix length"));
    assert!(error("allow=[::]/129").contains("up to 128"));
    assert!(error("allow=10.1.2.3/8").contains("write 10.0.0.0/8, or 10.1.2.3"));
    for ports in [
        "", "0", "90-80", "80-", "65536", "80,443", "http", "80+", "-",
    ] {
        let rule = format!("allow=1.2.3.4:{ports}");
        assert!(error(&rule).contains("is not a port"), "{rule}");
    }
}
