//! `--metadata`.

use std::fs;
use std::sync::Arc;

use devices::mmds::{DEFAULT_LIMIT, Mmds, MmdsConfig, Version, is_link_local};

use super::net::Card;
use crate::options::OptionList;
use crate::quantity::parse_size;

/// What `--metadata TEXT` names, for the guest of this name. What it does not say is as `config` has it.
pub(super) fn read(
    text: &str,
    guest: &str,
    config: Option<MmdsConfig>,
) -> Result<Arc<Mmds>, String> {
    let mut options = OptionList::new("--metadata", text);
    let Some(path) = options.take_first() else {
        return Err(options.error("it needs a file with JSON in it"));
    };
    // Who asks for nothing gets what is safe.
    let config = config.unwrap_or(MmdsConfig {
        version: Version::V2,
        ..MmdsConfig::default()
    });
    let version = options.parse_with("version", version)?;
    let address = options.parse_with("address", address)?;
    let limit = options.parse_with("limit", limit)?;
    let config = MmdsConfig {
        version: version.unwrap_or(config.version),
        address: address.unwrap_or(config.address),
        imds_compat: options
            .take_switch("imds-compat")?
            .unwrap_or(config.imds_compat),
    };
    let error = |what: String| options.error(format_args!("{path}: {what}"));
    let json = fs::read(&path).map_err(|reason| error(reason.to_string()))?;
    let value = serde_json::from_slice(&json).map_err(|reason| error(reason.to_string()))?;
    let mmds = Mmds::new(guest, limit.unwrap_or(DEFAULT_LIMIT))
        .map_err(|reason| error(reason.to_string()))?;
    mmds.set_config(config);
    mmds.put(value)
        .map_err(|reason| error(reason.to_string()))?;
    options.finish()?;
    Ok(Arc::new(mmds))
}

fn version(text: &str) -> Result<Version, String> {
    match text {
        "v1" | "V1" | "1" => Ok(Version::V1),
        "v2" | "V2" | "2" => Ok(Version::V2),
        _ => Err("write v1 or v2".into()),
    }
}

fn address(text: &str) -> Result<std::net::Ipv4Addr, String> {
    text.parse()
        .ok()
        .filter(|address| is_link_local(*address))
        .ok_or_else(|| "write an address from 169.254.1.0 to 169.254.254.255".into())
}

fn limit(text: &str) -> Result<usize, String> {
    let size = parse_size(text).map_err(|error| error.to_string())?;
    usize::try_from(size).map_err(|_| "that is more than there can be".into())
}

/// Has cards serve it: those that say so or, if none does, all that can and do not say otherwise. With `others`
/// that serve it already, these do only if they say so.
pub(super) fn serve(
    metadata: Option<Arc<Mmds>>,
    cards: &mut [Card],
    others: bool,
) -> Result<(), String> {
    let has_wish = cards.iter().any(|card| card.wants_metadata == Some(true));
    let Some(metadata) = metadata else {
        return match has_wish {
            true => Err("--net: mmds=on is there, and no --metadata".into()),
            false => Ok(()),
        };
    };
    let mut has_any = false;
    for card in cards {
        let wanted = card
            .wants_metadata
            .unwrap_or(!has_wish && !others && !card.has_vhost());
        if wanted && card.has_vhost() {
            return Err(
                "--net: mmds=on is not possible with vhost=on, with which the host's kernel \
                        serves the card"
                    .into(),
            );
        }
        if wanted {
            card.net.mmds = Some(Arc::clone(&metadata));
            has_any = true;
        }
    }
    if !has_any && !others {
        return Err(
            "--metadata: there is no card through which the guest could read it: add --net, \
                    not with vhost=on"
                .into(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::tempfile::TempFile;

    use super::super::net;
    use super::*;

    fn file(text: &str) -> TempFile {
        let file = TempFile::new().unwrap();
        fs::write(file.as_path(), text).unwrap();
        file
    }

    fn read_with(file: &TempFile, options: &str) -> Result<Arc<Mmds>, String> {
        let text = format!("{}{options}", file.as_path().display());
        read(&text, "guest", None)
    }

    #[test]
    fn a_file_is_read() {
        let json = file(r#"{"a": 1}"#);
        let mmds = read_with(&json, "").unwrap();
        assert_eq!(mmds.get().unwrap().to_string(), r#"{"a":1}"#);
        let config = MmdsConfig {
            version: Version::V2,
            ..MmdsConfig::default()
        };
        assert_eq!(mmds.config(), config);
        let all = ",version=v1,address=169.254.1.2,imds-compat=on,limit=7";
        let config = MmdsConfig {
            version: Version::V1,
            address: [169, 254, 1, 2].into(),
            imds_compat: true,
        };
        assert_eq!(read_with(&json, all).unwrap().config(), config);
        for (options, what) in [
            (",limit=6", "more than 6 bytes"),
            (",version=3", "v1 or v2"),
            (",address=10.0.0.1", "169.254.1.0"),
            (",address=x", "169.254.1.0"),
            (",colour=red", "unknown option"),
        ] {
            let error = read_with(&json, options).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
        for text in ["", "{", "{} {}", "\"\u{7f}"] {
            let error = read_with(&file(text), "").unwrap_err();
            assert!(error.starts_with("--metadata: /"), "{error}");
        }
        assert!(
            read("/no/such/file", "", None)
                .unwrap_err()
                .contains("/no/such/file")
        );
        let error = read("version=v1", "", None).unwrap_err();
        assert!(error.contains("needs a file"), "{error}");
    }

    fn served(cards: &[&str], metadata: bool) -> Result<Vec<bool>, String> {
        let json = file("{}");
        let metadata = metadata.then(|| read_with(&json, "").unwrap());
        let cards = cards.iter().map(|text| net::parse("net", text));
        let mut cards = cards.collect::<Result<Vec<_>, _>>()?;
        serve(metadata, &mut cards, false)?;
        Ok(cards.iter().map(|card| card.net.mmds.is_some()).collect())
    }

    #[test]
    fn cards_serve_it_or_not() {
        let vhost = "tap=t,vhost=on";
        assert_eq!(served(&["user", "tap"], true), Ok(vec![true, true]));
        assert_eq!(served(&["user", vhost], true), Ok(vec![true, false]));
        assert_eq!(
            served(&["user", "tap,mmds=off"], true),
            Ok(vec![true, false])
        );
        assert_eq!(
            served(&["user", "tap,mmds=on"], true),
            Ok(vec![false, true])
        );
        assert_eq!(served(&["user", "tap,mmds"], true), Ok(vec![false, true]));
        assert_eq!(
            served(&["user,mmds=off", vhost], false),
            Ok(vec![false, false])
        );
        for cards in [
            &[][..],
            &["user,mmds=off"],
            &[vhost],
            &["tap=t,vhost=on,mmds=on"],
        ] {
            served(cards, true).unwrap_err();
        }
        served(&["user,mmds=on"], false).unwrap_err();
        net::parse("net", "user,mmds=maybe").map(drop).unwrap_err();
    }
}
