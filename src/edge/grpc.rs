//! Refusals as gRPC clients read them.
//!
//! A client that gets a status other than 200 maps it to a code of its own and throws the fields
//! away, a challenge's nonce among them; unless the answer says `grpc-status` as well. So a refused
//! call gets the status and the fields of any other refusal, and is a "Trailers-Only" answer besides:
//! a head that ends the stream.

use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use pingora::http::{RequestHeader, ResponseHeader};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC: &str = "application/grpc";

/// Whether a request is a gRPC call: HTTP/2 with its content type, in whatever encoding of messages.
pub(super) fn is_call(request: &RequestHeader) -> bool {
    let kind = request.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let of_grpc = |kind: &str| {
        let rest = kind.strip_prefix(GRPC);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
    };
    request.version == http::Version::HTTP_2 && kind.is_some_and(of_grpc)
}

/// Makes the head of a refusal one that ends a call. `message` is visible ASCII and spaces.
///
/// # Errors
/// When a value cannot be written, which ours always can.
pub(super) fn refuse(head: &mut ResponseHeader, message: &str) -> pingora::Result<()> {
    head.insert_header(CONTENT_TYPE, GRPC)?;
    head.remove_header(&CONTENT_LENGTH);
    head.insert_header(GRPC_STATUS, code(head.status))?;
    head.insert_header(GRPC_MESSAGE, message)
}

/// The code that clients map a status to by themselves ("HTTP to gRPC Status Code Mapping").
fn code(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "13",
        401 => "16",
        403 => "7",
        404 => "12",
        429 | 502 | 503 | 504 => "14",
        _ => "2",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls() {
        for (version, kind, expect) in [
            (http::Version::HTTP_2, "application/grpc", true),
            (http::Version::HTTP_2, "application/grpc+proto", true),
            (http::Version::HTTP_2, "application/grpc;charset=utf-8", true),
            (http::Version::HTTP_2, "application/grpc-web", false),
            (http::Version::HTTP_2, "application/json", false),
            (http::Version::HTTP_11, "application/grpc", false),
        ] {
            let mut request = RequestHeader::build("POST", b"/a.B/C", None).unwrap();
            request.set_version(version);
            request.insert_header(CONTENT_TYPE, kind).unwrap();
            assert_eq!(is_call(&request), expect, "{kind}");
        }
    }
}
