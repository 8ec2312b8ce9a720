//! XML documents of S3.

use quick_xml::Reader;
use quick_xml::events::Event;

/// Returns the name of a document's root, without its namespace; `None` for a text that is no XML.
pub(super) fn root(text: &str) -> Option<String> {
    let mut reader = Reader::from_str(text);
    loop {
        match reader.read_event().ok()? {
            Event::Start(start) | Event::Empty(start) => {
                return String::from_utf8(start.local_name().as_ref().to_vec()).ok();
            }
            Event::Eof => return None,
            Event::Text(text) if !text.iter().all(u8::is_ascii_whitespace) => return None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_has_a_root() {
        for (text, name) in [
            (
                "<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"x\"><Name>b</Name></ListBucketResult>",
                Some("ListBucketResult"),
            ),
            ("  <s3:ListBucketResult xmlns:s3=\"x\"/>", Some("ListBucketResult")),
            ("<!DOCTYPE html>\n<html><body>ListBucketResult</body></html>", Some("html")),
            ("<!-- ListBucketResult --><Error/>", Some("Error")),
            ("{\"ListBucketResult\": 1}", None),
            ("plain", None),
            ("", None),
        ] {
            assert_eq!(root(text).as_deref(), name, "{text}");
        }
    }
}
