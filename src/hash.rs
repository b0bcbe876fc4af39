//! Names derived from longer ones.

use sha2::{Digest, Sha512};

/// The first `digits` hexadecimal digits, lower case, of the SHA-512 of `text`: how CNI
/// plugins fit an identity into a name with a length limit.
pub fn sha512_hex(text: &str, digits: usize) -> String {
    Sha512::digest(text)
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 0xf])
        .filter_map(|nibble| char::from_digit(nibble.into(), 16))
        .take(digits)
        .collect()
}

/// The first 16 of these digits as two numbers.
pub fn sha512_words(text: &str) -> [u32; 2] {
    let hash = Sha512::digest(text);
    let mut bytes = hash.iter();
    [(); 2].map(|()| {
        let word = bytes.by_ref().take(4);
        word.fold(0, |word, byte| word << 8 | u32::from(*byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of docs/compatibility.md#13.1.
    #[test]
    fn vectors() {
        assert_eq!(sha512_hex("net1cont1", 24), "01d424cb2a9303e21c6e971c");
        assert_eq!(sha512_words("net1cont1"), [0x01d4_24cb, 0x2a93_03e2]);
        assert_eq!(sha512_hex("test1234", 24), "2bbe0c48b91a7d1b8a6753a8");
        assert_eq!(sha512_hex("/run/netns/c1", 20), "20b4ff582526573bbe7d");
    }
}
