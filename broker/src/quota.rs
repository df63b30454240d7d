//! How many connections an address or a user has at once.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use crate::broker::lock;

/// Counts per key, up to a bound.
#[derive(Debug)]
pub(crate) struct Quotas<K> {
    max: usize,
    counts: Mutex<HashMap<K, usize>>,
}

/// One of a key's share; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share<K: Hash + Eq> {
    quotas: Arc<Quotas<K>>,
    key: K,
}

impl<K: Hash + Eq + Clone> Quotas<K> {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, counts: Mutex::default() })
    }

    /// One more, unless the key has all that it may have.
    pub(crate) fn take(self: &Arc<Self>, key: K) -> Option<Share<K>> {
        let mut counts = lock(&self.counts);
        let count = counts.entry(key.clone()).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(Share { quotas: self.clone(), key })
    }
}

impl<K: Hash + Eq> Drop for Share<K> {
    fn drop(&mut self) {
        let mut counts = lock(&self.quotas.counts);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

/// Whom an address stands for: with IPv6 one customer has a whole /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Origin([u8; 8], bool);

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => {
                let [a, b, c, d] = address.octets();
                Self([a, b, c, d, 0, 0, 0, 0], false)
            }
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self([a, b, c, d, e, f, g, h], true)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_at_most_its_share_and_what_it_gives_back_it_may_take_again() {
        let quotas = Quotas::new(2);
        let first = quotas.take("a");
        let second = quotas.take("a");
        assert!(first.is_some() && second.is_some());
        assert!(quotas.take("a").is_none());
        assert!(quotas.take("b").is_some());
        drop(first);
        assert!(quotas.take("a").is_some());
    }

    #[test]
    fn keys_that_have_nothing_take_no_memory() {
        let quotas = Quotas::new(1);
        for key in 0..100 {
            drop(quotas.take(key));
        }
        assert!(lock(&quotas.counts).is_empty());
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_as_one_and_a_mapped_ipv4_address_as_itself() {
        let origin = |text: &str| Origin::from(text.parse::<IpAddr>().expect("an address"));
        assert_eq!(origin("2001:db8::1"), origin("2001:db8::ffff:1"));
        assert_ne!(origin("2001:db8::1"), origin("2001:db8:0:1::1"));
        assert_eq!(origin("::ffff:10.0.0.1"), origin("10.0.0.1"));
        assert_ne!(origin("10.0.0.1"), origin("10.0.0.2"));
    }
}
