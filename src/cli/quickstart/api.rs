//! The sample API: it answers with what it received, the identity fields above all.

use axum::Router;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::authority::answer;

/// Every method and path.
pub(super) fn router() -> Router {
    Router::new().fallback(echo)
}

async fn echo(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let body = json!({
        "method": method.as_str(),
        "path": uri.path(),
        "identity": identity(&headers),
        "sawToken": headers.contains_key("authorization"),
    });
    answer(StatusCode::OK, &body)
}

/// Identity fields as received, `_` spelt or `-`; repeated ones joined, so that a doubled one shows.
fn identity(headers: &HeaderMap) -> Map<String, Value> {
    let mut identity = Map::new();
    for name in headers.keys() {
        let plain = name.as_str().replace('_', "-");
        if plain.starts_with("x-holdfast-") || plain.starts_with("client-cert") {
            let values: Vec<_> = headers
                .get_all(name)
                .iter()
                .map(|value| String::from_utf8_lossy(value.as_bytes()))
                .collect();
            identity.insert(name.to_string(), values.join(", ").into());
        }
    }
    identity
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_fields_are_told_and_no_others() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-holdfast-subject", "a"),
            ("x-holdfast-subject", "b"),
            ("x_holdfast_client", "c"),
            ("client-cert", ":d:"),
            ("authorization", "Bearer e"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        let expect = json!({
            "x-holdfast-subject": "a, b", "x_holdfast_client": "c", "client-cert": ":d:",
        });
        assert_eq!(Value::Object(identity(&headers)), expect);
    }
}
