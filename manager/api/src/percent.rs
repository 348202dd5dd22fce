//! Percent-encoding for URLs that are put together from what people wrote.

/// Encodes all but RFC 3986's unreserved characters.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::encode;

    #[test]
    fn a_password_cannot_change_the_meaning_of_its_url() {
        assert_eq!(encode("a/b@c:d?e#f g"), "a%2Fb%40c%3Ad%3Fe%23f%20g");
    }
}
