//! Names: hashes of blocks and data, ids of datasets.
//!
//! A multihash is `varint(code) ‖ varint(length) ‖ digest`; as text it is multibase base16 (`f` and lowercase hex). ODF
//! uses two codes: SHA3-256 for files, and `arrow0-sha3-256` for the logical hash of rows, which does not depend on how
//! Parquet happened to lay them out. A dataset's id is `varint(0xed) ‖ ed25519 public key`, as text `did:odf:f…`.

use std::fmt;
use std::str::FromStr;

use forebay_hash::{Digest, Sha3_256};

const SHA3_256_PREFIX: [u8; 2] = [0x16, 0x20];
const ARROW0_SHA3_256_PREFIX: [u8; 5] = [0x96, 0x80, 0xc0, 0x01, 0x20];
const ED25519_PREFIX: [u8; 2] = [0xed, 0x01];
const DID_PREFIX: &str = "did:odf:";

/// What a [`Multihash`] is the hash of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HashKind {
    /// `sha3-256` (0x16): the bytes of a block, slice or checkpoint.
    Sha3_256,
    /// `arrow0-sha3-256` (0x300016): the rows of a slice.
    Arrow0Sha3_256,
}

impl HashKind {
    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Sha3_256 => &SHA3_256_PREFIX,
            Self::Arrow0Sha3_256 => &ARROW0_SHA3_256_PREFIX,
        }
    }
}

/// A 32-byte digest that says what made it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Multihash {
    kind: HashKind,
    digest: [u8; 32],
}

impl Multihash {
    /// A digest that was computed elsewhere, e.g. while a file was written.
    #[must_use]
    pub fn new(kind: HashKind, digest: [u8; 32]) -> Self {
        Self { kind, digest }
    }

    /// The SHA3-256 of `bytes`: the name of a block or data file.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::new(HashKind::Sha3_256, Sha3_256::digest(bytes).into())
    }

    /// Which hash it is.
    #[must_use]
    pub fn kind(&self) -> HashKind {
        self.kind
    }

    /// The 32 bytes without their prefix.
    #[must_use]
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Binary form, as blocks hold it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [self.kind.prefix(), &self.digest].concat()
    }

    /// Reads the binary form; the length must match exactly.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NameError> {
        [HashKind::Sha3_256, HashKind::Arrow0Sha3_256]
            .into_iter()
            .find_map(|kind| {
                let digest = bytes.strip_prefix(kind.prefix())?.try_into().ok()?;
                Some(Self { kind, digest })
            })
            .ok_or_else(|| NameError::NotAMultihash(Hex(bytes).to_string()))
    }
}

/// A dataset's id: an ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DatasetDid([u8; 32]);

impl DatasetDid {
    /// The id that belongs to this public key.
    #[must_use]
    pub fn from_public_key(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The public key.
    #[must_use]
    pub fn public_key(&self) -> &[u8; 32] {
        &self.0
    }

    /// Binary form, as the Seed block holds it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [&ED25519_PREFIX[..], &self.0].concat()
    }

    /// Reads the binary form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NameError> {
        bytes
            .strip_prefix(&ED25519_PREFIX)
            .and_then(|key| key.try_into().ok())
            .map(Self)
            .ok_or_else(|| NameError::NotADatasetId(Hex(bytes).to_string()))
    }
}

/// Text or bytes that do not name anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Neither of the two hashes ODF uses.
    #[error(
        "`{0}` is not a multihash: expected f1620 (SHA3-256) or f9680c00120 (arrow0-sha3-256) and 64 lowercase hex digits"
    )]
    NotAMultihash(String),
    /// Not an ed25519 key.
    #[error("`{0}` is not a dataset id: expected did:odf:fed01 and 64 lowercase hex digits")]
    NotADatasetId(String),
}

impl fmt::Display for Multihash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "f{}{}", Hex(self.kind.prefix()), Hex(&self.digest))
    }
}

impl FromStr for Multihash {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        multibase16(text)
            .and_then(|bytes| Self::from_bytes(&bytes).ok())
            .ok_or_else(|| NameError::NotAMultihash(shortened(text)))
    }
}

impl fmt::Display for DatasetDid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{DID_PREFIX}f{}{}", Hex(&ED25519_PREFIX), Hex(&self.0))
    }
}

impl FromStr for DatasetDid {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        text.strip_prefix(DID_PREFIX)
            .and_then(multibase16)
            .and_then(|bytes| Self::from_bytes(&bytes).ok())
            .ok_or_else(|| NameError::NotADatasetId(shortened(text)))
    }
}

impl fmt::Debug for Multihash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for DatasetDid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Multihash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Multihash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl serde::Serialize for DatasetDid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for DatasetDid {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Lowercase hex.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The bytes of `f` and lowercase hex; no other multibase, and no second spelling of the same name.
pub(crate) fn multibase16(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix('f')?.as_bytes();
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(nibble(*high)? << 4 | nibble(*low)?)).collect()
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// What an error quotes of a text that may be a whole file.
fn shortened(text: &str) -> String {
    const CHARS_MAX: usize = 100;
    text.chars().take(CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "f16205b24eb808cbb938a37f9cf2a8c215bea9f33df750bad4f7293757ac55fca8752";

    #[test]
    fn text_and_bytes_of_a_multihash_come_back_unchanged() {
        for text in [TEXT, "f9680c00120ff2b9a8bca5a34207dabb0a143829e5399f28d6450f86ce7d50b261104c8d340"] {
            let hash: Multihash = text.parse().unwrap();

            assert_eq!(hash.to_string(), text);
            assert_eq!(Multihash::from_bytes(&hash.to_bytes()), Ok(hash));
        }
    }

    #[test]
    fn a_multihash_has_one_spelling_only() {
        for text in [
            "",
            "f",
            "f1620",
            &TEXT[1..],
            &TEXT[..68],
            &TEXT.to_uppercase(),
            &format!("{TEXT}\n"),
            &format!("{TEXT}00"),
            &TEXT.replace("f1620", "f1120"),
            "föö",
        ] {
            assert!(text.parse::<Multihash>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_hash_of_nothing_is_the_published_sha3_256() {
        assert_eq!(
            Multihash::of(b"").to_string(),
            "f1620a7ffc6f8bf1ed76651c14756a061d662f580ff4de43b49fa82d80a4b80f8434a"
        );
    }

    #[test]
    fn a_dataset_id_is_a_did_of_an_ed25519_key() {
        let text = "did:odf:fed01000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

        let did: DatasetDid = text.parse().unwrap();

        assert_eq!(did.to_string(), text);
        assert_eq!(did.public_key()[31], 0x1f);
        assert_eq!(DatasetDid::from_bytes(&did.to_bytes()), Ok(did));
        assert!(text.replace("odf", "key").parse::<DatasetDid>().is_err());
        assert!(text.replace("fed01", "fed02").parse::<DatasetDid>().is_err());
    }

    #[test]
    fn names_are_strings_in_json() {
        let hash: Multihash = serde_json::from_str(&format!("\"{TEXT}\"")).unwrap();

        assert_eq!(serde_json::to_string(&hash).unwrap(), format!("\"{TEXT}\""));
        assert!(serde_json::from_str::<Multihash>("\"x\"").is_err());
    }
}
