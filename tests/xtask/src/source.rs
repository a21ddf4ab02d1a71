//! Just enough of a Rust lexer to count functions: words and braces, without comments, strings and characters.

/// A token that matters to [`functions`] and [`has_word`], with the line (from 1) that it is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token<'a> {
    line: usize,
    text: &'a str,
}

/// A function that has a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Function {
    /// Its name.
    pub(crate) name: String,
    /// Line of the word `fn`, from 1.
    pub(crate) line: usize,
    /// Lines from the word `fn` to the closing brace, both included.
    pub(crate) lines: usize,
}

/// Whether `word` occurs in `source` as code.
pub(crate) fn has_word(source: &str, word: &str) -> bool {
    tokens(source).iter().any(|token| token.text == word)
}

/// Every function of `source` that has a body, in the order in which they end.
pub(crate) fn functions(source: &str) -> Vec<Function> {
    let tokens = tokens(source);
    let mut found = Vec::new();
    let mut open: Vec<Option<(String, usize)>> = Vec::new(); // one entry a brace: the function it opens, if any
    let mut pending: Option<(String, usize)> = None;
    let mut brackets = 0_usize;
    for (index, token) in tokens.iter().enumerate() {
        match token.text {
            "fn" => match tokens.get(index + 1) {
                Some(name) if is_word(name.text) => pending = Some((name.text.to_owned(), token.line)),
                _ => {}
            },
            "[" | "(" => brackets += 1,
            "]" | ")" => brackets = brackets.saturating_sub(1),
            ";" if brackets == 0 => pending = None,
            "{" => open.push(pending.take()),
            "}" => {
                if let Some(Some((name, line))) = open.pop() {
                    found.push(Function { name, line, lines: token.line - line + 1 });
                }
            }
            _ => {}
        }
    }
    found
}

fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = source;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let length = token_length(rest, first);
        let (text, after) = rest.split_at(length.clamp(first.len_utf8(), rest.len()));
        if is_word(text) || matches!(text, "{" | "}" | "(" | ")" | "[" | "]" | ";") {
            tokens.push(Token { line, text });
        }
        line += text.matches('\n').count();
        rest = after;
    }
    tokens
}

/// Bytes of the token at the start of `rest`; a comment, string or character is one token.
fn token_length(rest: &str, first: char) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment(rest);
    }
    if let Some(length) = raw_string(rest) {
        return length;
    }
    match first {
        '"' => quoted(rest, '"'),
        '\'' => character(rest),
        'b' | 'c' if rest[1..].starts_with('"') => 1 + quoted(&rest[1..], '"'),
        'b' if rest[1..].starts_with('\'') => 1 + quoted(&rest[1..], '\''),
        _ if first.is_alphanumeric() || first == '_' => word(rest),
        _ => first.len_utf8(),
    }
}

fn word(rest: &str) -> usize {
    rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
}

/// A comment may hold comments.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(tail) = rest.get(at..).filter(|tail| !tail.is_empty()) {
        if tail.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if tail.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += tail.chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

fn raw_string(rest: &str) -> Option<usize> {
    let body = ["br", "cr", "r"].iter().find_map(|prefix| rest.strip_prefix(prefix))?;
    let hashes = body.len() - body.trim_start_matches('#').len();
    let inside = body.trim_start_matches('#').strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = inside.find(&end).map_or(inside.len(), |at| at + end.len());
    Some(rest.len() - inside.len() + length)
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// A character literal, or only the quote of a lifetime.
fn character(rest: &str) -> usize {
    let mut inside = rest.chars().skip(1);
    match (inside.next(), inside.next()) {
        (Some('\\'), _) | (Some(_), Some('\'')) => quoted(rest, '\''),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_measured_from_fn_to_the_closing_brace() {
        let source = "fn one() -> u32 {\n  1\n}\nimpl A {\n  pub fn two(\n    a: [u8; 4],\n  ) {\n    fn inner() {}\n  }\n}\n";
        let found: Vec<_> = functions(source).into_iter().map(|f| (f.name, f.line, f.lines)).collect();
        assert_eq!(found, [("one".into(), 1, 3), ("inner".into(), 8, 1), ("two".into(), 5, 5)]);
    }

    #[test]
    fn declarations_without_a_body_and_function_pointers_are_no_functions() {
        let source = "trait T { fn a(&self); }\ntype F = fn(u8) -> u8;\nstruct S { f: fn(u8), g: u8 }\n";
        assert_eq!(functions(source), []);
    }

    #[test]
    fn braces_in_strings_comments_and_characters_do_not_count() {
        let source = "fn a<'x>(s: &'x str) {\n // }\n /* } /* } */ } */\n let _ = (\"}\\\"}\", '}', '\\'', b'}', r#\"}\"}\"#, b\"}\");\n}\n";
        assert_eq!(functions(source), [Function { name: "a".into(), line: 1, lines: 5 }]);
    }

    #[test]
    fn a_word_counts_only_as_code() {
        assert!(has_word("let a = unsafe { b() };", "unsafe"));
        assert!(!has_word("#![expect(unsafe_code)] // unsafe\n\"unsafe\"", "unsafe"));
    }
}
