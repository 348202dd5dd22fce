//! The routes as programs meet them: requests in, answers out, on a fake node.

mod client;
mod description;
mod forwarding;
mod requests;
mod waiting;

use crate::fake::{Fake, TOKEN};
use axum::Router;
use axum::body::Body;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;
use std::sync::Arc;
use tower::ServiceExt;

struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }
    /// The problem's code, after the checks that every problem must pass.
    fn problem(&self) -> String {
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json", "{}", self.text);
        let json = self.json();
        assert_eq!(json["status"], self.status.as_u16());
        let code = json["code"].as_str().unwrap().to_string();
        assert_eq!(json["type"], format!("urn:pgstead:problem:{code}"));
        assert!(json["title"].is_string() && !json["detail"].as_str().unwrap().is_empty());
        code
    }
    fn detail(&self) -> String {
        self.json()["detail"].as_str().unwrap().to_string()
    }
}

fn router(fake: &Arc<Fake>) -> Router {
    crate::router(fake.clone())
}

fn request(method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(path).header(header::AUTHORIZATION, format!("Bearer {TOKEN}"))
}

async fn send(router: &Router, request: Request<Body>) -> Answer {
    let answer: Response<Body> = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = answer.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    Answer { status: parts.status, headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
}

async fn get(router: &Router, path: &str) -> Answer {
    send(router, request("GET", path).body(Body::empty()).unwrap()).await
}

async fn post(router: &Router, path: &str, body: &str) -> Answer {
    let request = request("POST", path).header(header::CONTENT_TYPE, "application/json");
    send(router, request.body(Body::from(body.to_string())).unwrap()).await
}
