//! Addresses → what counts as one source. No I/O.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// Bits of an IPv6 address that tell one source from another: what is behind them, whoever has one address has all
/// (RFC 6177 §2).
const IPV6_SOURCE_BITS: u32 = 64;
const IPV6_SOURCE_MASK: u128 = u128::MAX << (u128::BITS - IPV6_SOURCE_BITS);

/// Where connections come from: an IPv4 address, or an IPv6 network of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(IpAddr);

impl Source {
    /// The source that `address` belongs to. IPv4 in IPv6 (RFC 4291 §2.5.5.2) is IPv4.
    pub fn of(address: IpAddr) -> Source {
        Source(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & IPV6_SOURCE_MASK)),
            address => address,
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => write!(f, "{address}"),
            IpAddr::V6(address) => write!(f, "{address}/{IPV6_SOURCE_BITS}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_source_is_an_ipv4_address_or_64_bits_of_an_ipv6_one() {
        for (one, other, is_same) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("::ffff:192.0.2.1", "192.0.2.1", true),
            ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", true),
            ("2001:db8:0:1::1", "2001:db8:0:2::1", false),
        ] {
            assert_eq!(Source::of(ip(one)) == Source::of(ip(other)), is_same, "{one} {other}");
        }
        assert_eq!(Source::of(ip("2001:db8:0:1::1")).to_string(), "2001:db8:0:1::/64");
        assert_eq!(Source::of(ip("192.0.2.1")).to_string(), "192.0.2.1");
    }
}
