//! Lists of options as docker and QEMU users write them: `VALUE,key=value,flag`.

use std::fmt::Display;
use std::str::FromStr;

/// What is left of a list.
#[derive(Debug)]
pub(crate) struct OptionList {
    /// The command line's name for it, such as `--disk`.
    flag: &'static str,
    items: Vec<(String, Option<String>)>,
    /// What was asked for so far: what can be there.
    known: Vec<&'static str>,
}

impl OptionList {
    /// Takes `text` apart.
    pub(crate) fn new(flag: &'static str, text: &str) -> Self {
        let items = text
            .split(',')
            .filter(|item| !item.is_empty())
            .map(|item| match item.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (item.to_owned(), None),
            })
            .collect();
        Self {
            flag,
            items,
            known: Vec::new(),
        }
    }

    /// Takes the first item, if it is a value without a key.
    pub(crate) fn take_first(&mut self) -> Option<String> {
        let is_value = matches!(self.items.first(), Some((_, None)));
        is_value.then(|| self.items.remove(0).0)
    }

    /// Takes the value of `key`; an error if it has none, or is there twice.
    pub(crate) fn take(&mut self, key: &'static str) -> Result<Option<String>, String> {
        let mut values = self.take_all(key)?;
        let value = values.pop();
        if values.is_empty() {
            Ok(value)
        } else {
            Err(self.error(format_args!("{key} is there more than once")))
        }
    }

    /// Takes all values of a `key` that may be there several times.
    pub(crate) fn take_all(&mut self, key: &'static str) -> Result<Vec<String>, String> {
        self.known.push(key);
        let mut values = Vec::new();
        for (_, value) in self.items.extract_if(.., |(other, _)| other == key) {
            values.push(value);
        }
        values
            .into_iter()
            .collect::<Option<_>>()
            .ok_or_else(|| self.error(format_args!("{key} needs a value: {key}=…")))
    }

    /// Takes and parses the value of `key`.
    pub(crate) fn parse<T: FromStr<Err: Display>>(
        &mut self,
        key: &'static str,
    ) -> Result<Option<T>, String> {
        self.parse_with(key, |value| {
            value.parse().map_err(|error: T::Err| error.to_string())
        })
    }

    /// Takes the value of `key` and parses it with `parse`.
    pub(crate) fn parse_with<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, String> {
        match self.take(key)? {
            Some(value) => parse(&value)
                .map(Some)
                .map_err(|error| self.error(format_args!("{key}={value}: {error}"))),
            None => Ok(None),
        }
    }

    /// Takes a `key` that is on or off; `key` alone is on.
    pub(crate) fn take_switch(&mut self, key: &'static str) -> Result<Option<bool>, String> {
        if self.take_flag(key) {
            return Ok(Some(true));
        }
        self.parse_with(key, |value| match value {
            "on" | "true" => Ok(true),
            "off" | "false" => Ok(false),
            _ => Err("write on or off".into()),
        })
    }

    /// Takes `flag`, a key without a value; says whether it was there.
    pub(crate) fn take_flag(&mut self, flag: &'static str) -> bool {
        self.known.push(flag);
        let is_flag = |(key, value): &(String, Option<String>)| key == flag && value.is_none();
        let position = self.items.iter().position(is_flag);
        position.map(|index| self.items.remove(index)).is_some()
    }

    /// An error if anything is left.
    pub(crate) fn finish(mut self) -> Result<(), String> {
        let Some((key, _)) = self.items.first() else {
            return Ok(());
        };
        self.known.sort_unstable();
        self.known.dedup();
        if self.known.contains(&key.as_str()) {
            return Err(self.error(format_args!(
                "{key} is there more than once, or has a value"
            )));
        }
        let known = self.known.join(", ");
        Err(self.error(format_args!("unknown option '{key}' (there are: {known})")))
    }

    /// An error about this list.
    pub(crate) fn error(&self, what: impl Display) -> String {
        format!("{}: {what}", self.flag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_and_nothing_is_left_over() {
        let mut list = OptionList::new("--disk", "a.img,ro,id=root,queues=2,x=1,x=2");
        assert_eq!(list.take_first().as_deref(), Some("a.img"));
        assert!(list.take_flag("ro"));
        assert!(!list.take_flag("ro"));
        assert_eq!(list.take("id").unwrap().as_deref(), Some("root"));
        assert_eq!(list.parse::<u16>("queues"), Ok(Some(2)));
        assert_eq!(list.take("serial"), Ok(None));
        assert_eq!(list.take_all("x").unwrap(), ["1", "2"]);
        list.finish().unwrap();
    }

    #[test]
    fn what_is_wrong_is_named() {
        let mut list = OptionList::new("--net", "tap=t0,queues=many,tap=t1,mtu,colour=red");
        let error = |result: Result<Option<u16>, String>| result.unwrap_err();
        assert!(error(list.parse("queues")).starts_with("--net: queues=many: "));
        let twice = list.take("tap").unwrap_err();
        assert_eq!(twice, "--net: tap is there more than once");
        let empty = list.take("mtu").unwrap_err();
        assert_eq!(empty, "--net: mtu needs a value: mtu=…");
        let left = list.finish().unwrap_err();
        assert!(left.contains("unknown option 'colour'"), "{left}");
        assert!(left.contains("mtu, queues, tap"), "{left}");
    }

    #[test]
    fn switches_are_on_or_off() {
        let mut list = OptionList::new("--net", "a,b=on,c=off,d=maybe");
        assert_eq!(list.take_switch("a"), Ok(Some(true)));
        assert_eq!(list.take_switch("b"), Ok(Some(true)));
        assert_eq!(list.take_switch("c"), Ok(Some(false)));
        assert_eq!(list.take_switch("e"), Ok(None));
        assert!(list.take_switch("d").is_err());
    }
}
