use super::*;

#[test]
fn addresses_are_link_local() {
    let cases = [
        ([169, 254, 169, 254], true),
        ([169, 254, 1, 0], true),
        ([169, 254, 254, 255], true),
        ([169, 254, 0, 255], false),
        ([169, 254, 255, 0], false),
        ([169, 253, 1, 1], false),
        ([10, 0, 0, 1], false),
        ([224, 0, 0, 1], false),
    ];
    for (address, is_good) in cases {
        assert_eq!(is_link_local(address.into()), is_good, "{address:?}");
    }
    let config = MmdsConfig::default();
    assert_eq!(config.version, Version::V1);
    assert!(is_link_local(config.address) && !config.imds_compat);
}
