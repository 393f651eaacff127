use std::collections::HashSet;
use std::time::Duration;

use super::*;

#[test]
fn a_token_is_good_until_it_expires() {
    let tokens = Tokens::new("one").unwrap();
    let now = Instant::now();
    for ttl in [1, 60, 21_600] {
        let token = tokens.issue(ttl, now).unwrap();
        assert!(token.len() <= MAX_LEN, "{token}");
        assert!(token.bytes().all(|byte| byte.is_ascii_graphic()), "{token}");
        assert!(tokens.is_valid(&token, now));
        let almost = Duration::from_secs(ttl.into()) - Duration::from_millis(2);
        assert!(tokens.is_valid(&token, now + almost));
        let end = Duration::from_secs(ttl.into());
        assert!(!tokens.is_valid(&token, now + end));
        assert!(!tokens.is_valid(&token, now + end * 2));
    }
    for ttl in [0, 21_601, u32::MAX] {
        assert_eq!(tokens.issue(ttl, now), None, "{ttl}");
    }
}

#[test]
fn others_are_not() {
    let now = Instant::now();
    // Of another process, and of another guest with the same key.
    let one = Tokens::new("one").unwrap();
    let token = one.issue(60, now).unwrap();
    assert!(!Tokens::new("one").unwrap().is_valid(&token, now));
    let key = [7; 32];
    let of = |id: &[u8]| Tokens {
        mac: <Hmac<Sha256> as KeyInit>::new_from_slice(&key)
            .unwrap()
            .chain_update(id),
        origin: now,
    };
    let token = of(b"one").issue(60, now).unwrap();
    assert!(of(b"one").is_valid(&token, now));
    assert!(!of(b"two").is_valid(&token, now));
    let long = "A".repeat(1_000_000);
    for text in [
        "",
        "A",
        "AAAAAAAAAAA",
        "not base64!",
        "=",
        &long,
        &token[1..],
        "\u{fe0f}",
    ] {
        assert!(!of(b"one").is_valid(text, now), "{}", text.len());
    }
    // It has a length of its own.
    assert!(!of(b"one").is_valid(&format!("{token}A"), now));
    assert!(!of(b"one").is_valid(&format!("{token}="), now));
}

#[test]
fn no_bit_of_a_token_may_change() {
    let tokens = Tokens::new("one").unwrap();
    let now = Instant::now();
    let bytes = URL_SAFE_NO_PAD
        .decode(tokens.issue(60, now).unwrap())
        .unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let changed = URL_SAFE_NO_PAD.encode(changed);
        assert!(!tokens.is_valid(&changed, now), "bit {bit}");
    }
    assert!(!tokens.is_valid(&URL_SAFE_NO_PAD.encode(&bytes[..39]), now));
    assert!(!tokens.is_valid(&URL_SAFE_NO_PAD.encode(&bytes[..8]), now));
    assert!(!tokens.is_valid(&URL_SAFE_NO_PAD.encode(&bytes[..7]), now));
}

#[test]
fn they_tell_nothing_of_the_key() {
    let tokens = Tokens::new("one").unwrap();
    assert_eq!(format!("{tokens:?}"), "Tokens { .. }");
    let now = Instant::now();
    let all: HashSet<_> = (1..100)
        .map(|ttl| tokens.issue(ttl, now).unwrap())
        .collect();
    assert_eq!(all.len(), 99);
}
