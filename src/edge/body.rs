//! A request's body as a whole, within limits.

use std::time::Duration;

use http::header::{CONTENT_LENGTH, EXPECT};
use http::{HeaderValue, Version};
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorType};

/// The body; `None` where it is longer than `limit` bytes.
///
/// # Errors
/// When it does not come within `time`, or is cut.
pub(super) async fn whole(
    session: &mut Session,
    limit: usize,
    time: Duration,
) -> pingora::Result<Option<Vec<u8>>> {
    let length = session.req_header().headers.get(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > limit) {
        return Ok(None);
    }
    let expects = waits_to_be_asked(session.req_header());
    let reading = async {
        if expects {
            session.as_downstream_mut().write_continue_response().await?;
        }
        let mut body = Vec::new();
        while let Some(chunk) = session.read_request_body().await? {
            if body.len() + chunk.len() > limit {
                return Ok(None);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Some(body))
    };
    match tokio::time::timeout(time, reading).await {
        // Whatever is wrong with it is the client's.
        Ok(read) => read.map_err(Error::into_down),
        Err(_) => Err(Error::new_down(ErrorType::ReadTimedout)),
    }
}

/// RFC 9110 section 10.1.1; with HTTP/2 a client that hears nothing goes on by itself.
fn waits_to_be_asked(head: &RequestHeader) -> bool {
    let expects = head.headers.get(EXPECT).map(HeaderValue::as_bytes);
    head.version == Version::HTTP_11
        && expects.is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"))
}
