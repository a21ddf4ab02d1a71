//! Sizes as people write them: a number and a suffix.

/// Bytes from a number with a suffix K, M, G or T (powers of 1024). A bare number is refused: it says bytes to some and
/// MiB to others.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 =
        digits.parse().map_err(|_| format!("{text:?} is not a number with a suffix, such as 128M"))?;
    let shift = match text.get(digits.len()..).unwrap_or_default() {
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        "" if number == 0 => return Err("0 is nothing: say 64M, for example".into()),
        "" => return Err(format!("{text} what? Say {text}M for MiB")),
        other => return Err(format!("{other:?} is not one of the suffixes K, M, G, T")),
    };
    number.checked_mul(1 << shift).ok_or_else(|| "is too large".into())
}
