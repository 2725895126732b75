//! Writes results of measurements into the pages of `docs/`, between two marks, so that the next run replaces them.

use std::fs;
use std::path::Path;

use crate::error::{Error, FileContext, Result};

/// Puts `text` between `<!-- NAME -->` and the next `<!-- end -->` of a page.
///
/// # Errors
/// When the page has no such marks, or cannot be read or written.
pub fn replace(page: &Path, name: &str, text: &str) -> Result<()> {
    let before = fs::read_to_string(page).doing("read", page)?;
    let after = replaced(&before, name, text).ok_or_else(|| {
        Error::failed(format!("{} has no line `<!-- {name} -->` with an `<!-- end -->` after it", page.display()))
    })?;
    fs::write(page, after).doing("write", page)
}

fn replaced(page: &str, name: &str, text: &str) -> Option<String> {
    let (before, rest) = page.split_once(&format!("<!-- {name} -->\n"))?;
    let (_, after) = rest.split_once("<!-- end -->\n")?;
    Some(format!("{before}<!-- {name} -->\n\n{}\n\n<!-- end -->\n{after}", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::replaced;

    #[test]
    fn only_the_text_between_the_marks_is_replaced() {
        let page = "a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\n<!-- end -->\n";
        let once = replaced(page, "two", "new\n").unwrap();
        assert_eq!(once, "a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\n\nnew\n\n<!-- end -->\n");
        assert_eq!(replaced(&once, "two", "new").unwrap(), once);
        assert_eq!(replaced(page, "three", "new"), None);
    }
}
