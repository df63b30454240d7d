//! SHA3-256 of `sha3`, compiled here and nowhere else.
//!
//! Its permutation is generic: it is compiled in each crate that hashes, as that crate is. For size its loops are not
//! unrolled, and it is five times as slow (54 MB/s instead of 290 on one x86-64 core). Each row and each byte of a slice is
//! hashed, so this crate is compiled for speed and has nothing generic.

use sha3::digest::{FixedOutput, HashMarker, Output, OutputSizeUser, Update, consts::U32};

pub use sha3::Digest;

/// SHA3-256 (FIPS 202).
#[derive(Clone, Debug, Default)]
pub struct Sha3_256(sha3::Sha3_256);

impl Update for Sha3_256 {
    fn update(&mut self, data: &[u8]) {
        Update::update(&mut self.0, data);
    }
}

impl FixedOutput for Sha3_256 {
    fn finalize_into(self, out: &mut Output<Self>) {
        FixedOutput::finalize_into(self.0, out);
    }
}

impl OutputSizeUser for Sha3_256 {
    type OutputSize = U32;
}

impl HashMarker for Sha3_256 {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_sha3_256() {
        // FIPS 202, example of the empty message; the second is the first 200 bytes of 0xa3 (SHA3-256 of 1600 bits).
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let empty = "a7ffc6f8bf1ed76651c14756a061d662f580ff4de43b49fa82d80a4b80f8434a";
        let a3 = "79f38adec5c20307a98ef76e8324afbfd46cfd81b22e3973c65fa1bd9de31787";

        assert_eq!(hex(&Sha3_256::digest([])), empty);
        let mut pieces = Sha3_256::new();
        for piece in [0xa3; 200].chunks(7) {
            Digest::update(&mut pieces, piece);
        }
        assert_eq!(hex(&pieces.finalize()), a3);
    }
}
