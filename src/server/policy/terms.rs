//! How far a grant goes where it opens a host: as which accounts, for which commands and targets, from where, until when. Each
//! only narrows what the host allows. No I/O, no clock.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::SystemTime;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset};
use toml::value::{Datetime, Offset};

use super::target::TargetPattern;
use crate::server::config::Commands;

/// The terms of a grant. What is `None` narrows nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// The only accounts that may be asked for; the host's own alone if `None`.
    pub accounts: Option<Vec<String>>,
    /// The commands and uploads, of those that the host allows.
    pub commands: Option<Commands>,
    /// What `/stream` may reach, of what the host allows.
    pub targets: Option<Vec<TargetPattern>>,
    /// Where a request has to come from.
    pub sources: Option<Vec<Network>>,
    /// When the grant ends.
    pub expires: Option<Expiry>,
}

impl Terms {
    /// Whether the grant is there at all for somebody at `source`, at `now`.
    pub fn count(&self, source: IpAddr, now: SystemTime) -> bool {
        let is_here = self.sources.as_ref().is_none_or(|networks| networks.iter().any(|net| net.contains(source)));
        is_here && self.expires.is_none_or(|expiry| expiry.is_after(now))
    }

    /// Whether the grant goes as far as `account`, on a host whose own account is `of_host`.
    pub fn includes_account(&self, account: &str, of_host: &str) -> bool {
        match &self.accounts {
            Some(accounts) => accounts.iter().any(|granted| granted == account),
            None => account == of_host,
        }
    }
}

/// A network in CIDR notation (RFC 4632 §3.1), or one address. An IPv4 address that is written or comes in as an IPv6 one
/// (RFC 4291 §2.5.5.2) is an IPv4 address here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Network(IpNet);

/// How many bits of an IPv4-mapped address are the same for all of them.
const MAPPED_BITS: u8 = 96;

impl Network {
    /// This machine's own, which is where everybody seems to be who comes by way of a balancer on it.
    pub const LOOPBACK: [Network; 2] = [
        Network(IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8)),
        Network(IpNet::new_assert(IpAddr::V6(Ipv6Addr::LOCALHOST), 128)),
    ];

    /// Whether `source` is in this network.
    pub fn contains(&self, source: IpAddr) -> bool {
        self.0.contains(&source.to_canonical())
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Network, String> {
        let written = parse(&text).ok_or_else(|| format!("`{text}` is no address and no network"))?;
        // A typing error in one of the two would open more, or less, than it seems.
        if written.addr() != written.network() {
            return Err(format!("`{text}` has bits behind its prefix: the network is {}", written.trunc()));
        }
        let mapped = match written.addr() {
            IpAddr::V6(address) => address.to_ipv4_mapped().zip(written.prefix_len().checked_sub(MAPPED_BITS)),
            IpAddr::V4(_) => None,
        };
        let network = mapped.and_then(|(address, prefix)| IpNet::new(address.into(), prefix).ok());
        Ok(Network(network.unwrap_or(written)))
    }
}

/// Without leading zeros, which some read as octal.
fn parse(text: &str) -> Option<IpNet> {
    let Some((address, prefix)) = text.split_once('/') else { return text.parse::<IpAddr>().map(IpNet::from).ok() };
    let is_plain = prefix == "0" || (!prefix.starts_with('0') && prefix.bytes().all(|byte| byte.is_ascii_digit()));
    IpNet::new(address.parse().ok()?, prefix.parse().ok().filter(|_| is_plain)?).ok()
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() { self.0.addr().fmt(f) } else { self.0.fmt(f) }
    }
}

/// When a grant ends: it counts strictly before. Written as a TOML date-time or as a string in the same form (RFC 3339),
/// either with an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry(OffsetDateTime);

impl Expiry {
    /// Whether this is still to come at `now`.
    pub fn is_after(&self, now: SystemTime) -> bool {
        SystemTime::from(self.0) > now
    }
}

impl TryFrom<Datetime> for Expiry {
    type Error = String;

    fn try_from(written: Datetime) -> Result<Expiry, String> {
        let wrong = || format!("`{written}` is no date and time with an offset, like 2030-01-31T18:00:00Z");
        let (Some(date), Some(time), Some(offset)) = (written.date, written.time, written.offset) else {
            return Err(wrong());
        };
        let seconds = match offset {
            Offset::Z => 0,
            Offset::Custom { minutes } => i32::from(minutes) * 60,
        };
        let moment = || {
            let month = Month::try_from(date.month).ok()?;
            let date = Date::from_calendar_date(date.year.into(), month, date.day).ok()?;
            let (second, nanosecond) = (time.second.unwrap_or(0), time.nanosecond.unwrap_or(0));
            let time = Time::from_hms_nano(time.hour, time.minute, second, nanosecond).ok()?;
            let offset = UtcOffset::from_whole_seconds(seconds).ok()?;
            PrimitiveDateTime::new(date, time).assume_offset(offset).checked_to_offset(UtcOffset::UTC)
        };
        moment().map(Expiry).ok_or_else(wrong)
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.0.to_calendar_date();
        let (hour, minute, second) = self.0.to_hms();
        write!(f, "{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z", u8::from(month))
    }
}

impl<'de> Deserialize<'de> for Expiry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Expiry, D::Error> {
        struct Written;

        impl<'de> Visitor<'de> for Written {
            type Value = Datetime;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a date and time with an offset")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Datetime, E> {
                text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Datetime, A::Error> {
                Datetime::deserialize(MapAccessDeserializer::new(map))
            }
        }

        let written = deserializer.deserialize_any(Written)?;
        Expiry::try_from(written).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn network(text: &str) -> Network {
        Network::try_from(text.to_owned()).unwrap()
    }

    fn contains(text: &str, source: &str) -> bool {
        network(text).contains(source.parse().unwrap())
    }

    #[test]
    fn a_network_contains_its_addresses_and_no_others() {
        for (text, inside, outside) in [
            ("10.1.0.0/16", "10.1.255.255", "10.2.0.0"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("0.0.0.0/0", "203.0.113.9", "::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("::1", "::1", "127.0.0.1"),
            ("::/0", "2001:db8::1", "127.0.0.1"),
            ("192.0.2.128/25", "192.0.2.129", "192.0.2.127"),
        ] {
            assert!(contains(text, inside), "{text} {inside}");
            assert!(!contains(text, outside), "{text} {outside}");
        }
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address_that_it_maps() {
        assert!(contains("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(contains("::ffff:10.0.0.0/104", "10.1.2.3"));
        assert!(contains("::ffff:10.1.2.3", "::ffff:10.1.2.3"));
        assert!(!contains("::/0", "::ffff:10.1.2.3"));
        assert!(!contains("10.0.0.0/8", "::10.1.2.3"));
        assert_eq!(network("::ffff:10.0.0.0/104"), network("10.0.0.0/8"));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            "",
            "*",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "10.0.0.0/08x",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "010.0.0.0/8",
            "010.0.0.0",
            "10.0.0",
            "10.0.0.1/8",
            "2001:db8::1/32",
            "::/129",
            "localhost",
            "fe80::1%eth0",
            "10.0.0.0 /8",
            "10.0.0.0/255.0.0.0",
            "[::1]",
        ] {
            assert!(Network::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[derive(Debug, Deserialize)]
    struct Sample {
        expires: Expiry,
    }

    fn expiry(written: &str) -> Result<Expiry, String> {
        toml::from_str::<Sample>(&format!("expires = {written}"))
            .map(|sample| sample.expires)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn an_expiry_is_one_moment_however_it_is_written() {
        let expected = expiry("2030-01-31T18:00:00Z").unwrap();
        for same in [
            "2030-01-31 18:00:00Z",
            "2030-01-31T19:30:00+01:30",
            "\"2030-01-31T18:00:00Z\"",
            "\"2030-01-31T10:00:00.000-08:00\"",
            "'2030-01-31t18:00:00z'",
        ] {
            assert_eq!(expiry(same), Ok(expected), "{same}");
        }
        assert_eq!(serde_json::from_str::<Expiry>("\"2030-01-31T18:00:00Z\"").unwrap(), expected);
        assert_eq!(expected.to_string(), "2030-01-31T18:00:00Z");
    }

    #[test]
    fn a_malformed_expiry_is_refused() {
        for bad in [
            "2030-01-31T18:00:00",
            "2030-01-31",
            "18:00:00",
            "\"2030-01-31T18:00:00\"",
            "\"2030-01-31\"",
            "\"\"",
            "\"tomorrow\"",
            "\"2030-02-30T18:00:00Z\"",
            "\"2030-01-31T24:00:00Z\"",
            "\"2030-01-31T18:00:60Z\"",
            "\"2030-01-31T18:00:00Z \"",
            "\"2030-01-31T18:00:00+99:00\"",
            "1896112800",
            "true",
            "{ year = 2030 }",
            "[]",
        ] {
            assert!(expiry(bad).is_err(), "{bad}");
        }
        for bad in ["1896112800", "null", "{}", "{\"$__toml_private_datetime\":\"x\"}"] {
            assert!(serde_json::from_str::<Expiry>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_grant_counts_strictly_before_its_end() {
        let terms = Terms { expires: Some(expiry("1970-01-01T00:01:00Z").unwrap()), ..Terms::default() };
        let at =
            |millis: u64| terms.count([127, 0, 0, 1].into(), SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
        assert!(at(0) && at(59_999));
        assert!(!at(60_000) && !at(60_001));
    }

    #[test]
    fn a_grant_of_no_source_counts_nowhere() {
        let terms = Terms { sources: Some(vec![]), ..Terms::default() };
        assert!(!terms.count([127, 0, 0, 1].into(), SystemTime::UNIX_EPOCH));
    }

    proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(text in any::<String>(), number in "[0-9T:+. -]{0,40}Z?") {
            let _ = Network::try_from(text.clone());
            let _ = Network::try_from(number.clone());
            let _ = expiry(&format!("'{text}'"));
            let _ = expiry(&number);
            let _ = expiry(&format!("'{number}'"));
        }

        #[test]
        fn a_network_holds_its_own_address(bits in any::<u32>(), prefix in 0u8..=32) {
            let masked = u32::try_from(u64::from(bits) & !((1u64 << (32 - prefix)) - 1)).unwrap();
            let address = std::net::Ipv4Addr::from(masked);
            let network = network(&format!("{address}/{prefix}"));
            prop_assert!(network.contains(address.into()));
            prop_assert!(network.contains(address.to_ipv6_mapped().into()));
        }
    }
}
