//! The order in which people look for names: `c2` comes before `c10`.

use std::cmp::Ordering;

/// Compares names part by part, runs of digits by the numbers that they are.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    while !left.is_empty() && !right.is_empty() {
        let (first, rest) = split(left);
        let (second, other) = split(right);
        let is_number = |part: &str| part.starts_with(|c: char| c.is_ascii_digit());
        let order = if is_number(first) && is_number(second) {
            number(first).cmp(&number(second))
        } else {
            first.cmp(second)
        };
        if order != Ordering::Equal {
            return order;
        }
        (left, right) = (rest, other);
    }
    // What differs in leading zeros only is not the same.
    left.len().cmp(&right.len()).then_with(|| a.cmp(b))
}

/// A number of any length: the longer one is greater, without its leading zeros.
fn number(digits: &str) -> (usize, &str) {
    let digits = digits.trim_start_matches('0');
    (digits.len(), digits)
}

/// The first run of digits, or of what are none, and the rest.
fn split(name: &str) -> (&str, &str) {
    let is_digit = name.starts_with(|c: char| c.is_ascii_digit());
    let end = name.find(|c: char| c.is_ascii_digit() != is_digit);
    name.split_at(end.unwrap_or(name.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_count_as_numbers() {
        let mut names = [
            "c10", "c2", "b", "c", "c02", "c2a", "10", "9", "c2-10", "c2-9", "",
        ];
        names.sort_by(|a, b| compare(a, b));
        assert_eq!(
            names,
            [
                "", "9", "10", "b", "c", "c02", "c2", "c2-9", "c2-10", "c2a", "c10"
            ]
        );
    }
}
