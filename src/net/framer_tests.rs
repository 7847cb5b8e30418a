//! What is a request and what is not, row by row; then the properties that hold for any bytes.

use super::*;
use proptest::prelude::*;

const LIMITS: HeadLimits = HeadLimits { header_bytes: 4096, header_count: 20, uri_bytes: 1024 };

fn judge(bytes: &[u8]) -> Verdict {
    HeadReader::new(LIMITS).read(&mut BytesMut::from(bytes))
}

fn accepted(bytes: impl AsRef<[u8]>) -> Head {
    match judge(bytes.as_ref()) {
        Verdict::Head(head) => *head,
        other => panic!("{:?}: {other:?}", bytes.as_ref().escape_ascii().to_string()),
    }
}

fn refused(bytes: impl AsRef<[u8]>) -> Code {
    match judge(bytes.as_ref()) {
        Verdict::Refuse(refusal) => refusal.code,
        other => panic!("{:?}: {other:?}", bytes.as_ref().escape_ascii().to_string()),
    }
}

/// A POST with these fields after its Host.
fn post(fields: impl AsRef<[u8]>) -> Vec<u8> {
    [b"POST / HTTP/1.1\r\nHost: a\r\n", fields.as_ref(), b"\r\n\r\n"].concat()
}

fn bad(cases: &[&[u8]]) {
    for case in cases {
        assert_eq!(refused(case), Code::BadRequest, "{}", case.escape_ascii());
    }
}

#[test]
fn a_plain_request_passes_unchanged() {
    let bytes =
        b"GET /a?b=c HTTP/1.1\r\nHost: app.test:8080\r\nCookie: a=b; c=d\r\nX-Empty:\r\nX-Utf8: \xc3\xa9\r\n\r\n";
    let head = accepted(bytes);
    assert_eq!(head.bytes, bytes.as_slice());
    assert_eq!((&head.method[..], &head.target[..]), (&b"GET"[..], &b"/a?b=c"[..]));
    assert_eq!(head.host.as_deref(), Some(&b"app.test:8080"[..]));
    assert_eq!((head.body, head.upgrade), (Body::None, Upgrade::No));
}

#[test]
fn what_follows_a_head_stays_in_the_buffer() {
    let mut buffer = BytesMut::from(&b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /next"[..]);
    assert!(matches!(HeadReader::new(LIMITS).read(&mut buffer), Verdict::Head(_)));
    assert_eq!(buffer, &b"GET /next"[..]);
}

#[test]
fn rfc_9112_2_2_one_empty_line_before_the_request_is_ignored() {
    let head = accepted(b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(head.bytes, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".as_slice());
    bad(&[b"\r\n\r\nGET / HTTP/1.1\r\n", b"\nGET / HTTP/1.1\r\n", b"\rGET / HTTP/1.1\r\n"]);
}

#[test]
fn http_01_length_and_chunks_together() {
    bad(&[
        &post("Content-Length: 5\r\nTransfer-Encoding: chunked"),
        &post("Transfer-Encoding: chunked\r\nContent-Length: 0"),
    ]);
}

#[test]
fn http_02_repeated_length() {
    for fields in
        ["Content-Length: 5\r\nContent-Length: 5", "Content-Length: 5\r\ncontent-length: 6", "Content-Length: 5, 5"]
    {
        bad(&[&post(fields)]);
    }
}

#[test]
fn http_03_invalid_length() {
    for value in [
        "+5",
        "-0",
        "-1",
        "0x5",
        "5_0",
        "05",
        "00",
        " 5",
        "5 ",
        "5\t",
        "\t5",
        "",
        "٥",
        "9223372036854775808",
        "18446744073709551616",
        "5;",
        "5\u{a0}",
    ] {
        bad(&[&post(format!("Content-Length: {value}"))]);
    }
    assert_eq!(accepted(post("Content-Length: 5")).body, Body::Length(5));
    assert_eq!(accepted(post("content-length:5")).body, Body::Length(5));
    assert_eq!(accepted(post("Content-Length: 0")).body, Body::None);
    assert_eq!(accepted(post("Content-Length: 9223372036854775807")).body, Body::Length(MOST_LENGTH));
}

#[test]
fn http_04_transfer_encoding_other_than_chunked() {
    for field in [
        "Transfer-Encoding: identity",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked;x",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding:\tchunked",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding: chunked\0",
        "Transfer-Encoding: \u{a0}chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: chunked ",
        "Transfer-Encoding:",
    ] {
        bad(&[&post(field)]);
    }
    assert_eq!(accepted(post("Transfer-Encoding: chunked")).body, Body::Chunked);
    assert_eq!(accepted(post("transfer-encoding:CHUNKED")).body, Body::Chunked);
}

#[test]
fn http_05_chunks_in_http_1_0() {
    bad(&[b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"]);
    assert_eq!(accepted(b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\n").body, Body::Length(2));
}

#[test]
fn http_09_line_ends_are_cr_lf() {
    bad(&[
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\rHost: a\r\r",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\rX",
        b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
        b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n",
    ]);
}

#[test]
fn http_10_controls_anywhere() {
    for control in (0..=0x1f_u8).chain([0x7f]) {
        for place in [
            "G%T / HTTP/1.1\r\n",
            "GET /a%b HTTP/1.1\r\n",
            "GET /% HTTP/1.1\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX%Y: b\r\n\r\n",
        ] {
            bad(&[&place.bytes().map(|b| if b == b'%' { control } else { b }).collect::<Vec<_>>()]);
        }
        if control != b'\t' {
            for value in ["%b", "a%b", "a%"] {
                let value: Vec<_> = value.bytes().map(|b| if b == b'%' { control } else { b }).collect();
                bad(&[&[b"GET / HTTP/1.1\r\nHost: a\r\nX: ", &value[..], b"\r\n\r\n"].concat()]);
            }
        }
    }
    accepted(b"GET / HTTP/1.1\r\nHost: a\r\nX: a\tb\r\n\r\n");
}

#[test]
fn http_11_malformed_header_lines() {
    bad(&[
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nnocolon\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\tc\r\n\r\n",
    ]);
}

#[test]
fn http_12_names_are_tokens() {
    for byte in b"(),/;<=>?@[\\]{}\" \x80\xff\xc3" {
        bad(&[&[b"GET / HTTP/1.1\r\nHost: a\r\nX", &[*byte][..], b"Y: b\r\n\r\n"].concat()]);
    }
}

#[test]
fn http_13_versions() {
    for version in ["HTTP/1.2", "HTTP/9.9", "HTTP/2.0", "HTTP/0.9", "HTTP/3.0"] {
        assert_eq!(refused(format!("GET / {version}\r\n")), Code::BadVersion);
    }
    bad(&[
        b"GET / HTTP/01.1\r\n",
        b"GET / HTTP/1.1x\r\n",
        b"GET / HTTP/1.\r\n",
        b"GET / http/1.1\r\n",
        b"GET / HTTP/1.1 \r\n",
        b"GET / HTTPS/1.1\r\n",
        b"GET / HTTP/1,1\r\n",
        b"GET /\r\n",
        b"GET / \r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]);
}

#[test]
fn http_14_the_request_line() {
    bad(&[
        b"GET  / HTTP/1.1\r\n",
        b"GET /  HTTP/1.1\r\n",
        b"GET\t/ HTTP/1.1\r\n",
        b"GET /\tHTTP/1.1\r\n",
        b"GE T / HTTP/1.1\r\n",
        b" GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1 x\r\n",
        b"G@T / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02",
        &[b'A'; 1024],
    ]);
    for target in ["/a#b", "/<", "/>", "/é", "/?<"] {
        bad(&[format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()]);
    }
}

#[test]
fn http_15_host() {
    bad(&[
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: a\r\nhost: b\r\n\r\n",
    ]);
    for host in [
        "",
        " ",
        "a,b",
        "a@b",
        "a:99999",
        "a:",
        ":80",
        "[::1",
        "[::1]x",
        "[::1]:",
        "[1.2.3.4]",
        "::1",
        "a b",
        "a/b",
        "a?b",
        "a#b",
        "a\\b",
        "a:8080:1",
        "a%2fb",
        "http://a",
        "é",
        "a:+80",
        "[::1%25eth0]",
        "a;b",
    ] {
        bad(&[format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()]);
    }
    for host in ["a", "a.b.c:1", "my_pod-1:65535", "127.0.0.1:80", "[::1]", "[2001:db8::1]:8443"] {
        let head = accepted(format!("GET / HTTP/1.1\r\nHost:  {host}\t\r\n\r\n"));
        assert_eq!(head.host.as_deref(), Some(host.as_bytes()));
    }
    assert_eq!(accepted(b"GET / HTTP/1.0\r\n\r\n").host, None);
}

#[test]
fn http_16_an_absolute_target_becomes_a_path() {
    for (target, path) in [
        ("http://app.test/api/x?y", "/api/x?y"),
        ("HTTPS://APP.test/api", "/api"),
        ("http://app.test", "/"),
        ("http://app.test?q=http://b/c", "/?q=http://b/c"),
    ] {
        let head = accepted(format!("GET {target} HTTP/1.1\r\nHost: app.test\r\nX: y\r\n\r\n"));
        assert_eq!(head.target, path.as_bytes());
        assert_eq!(head.bytes, format!("GET {path} HTTP/1.1\r\nHost: app.test\r\nX: y\r\n\r\n").as_bytes());
    }
    for target in [
        "http://evil.test/api",
        "http://app.test@evil.test/",
        "http://u@app.test/",
        "http://app.test:80/",
        "http:///api",
        "http:/api",
        "http:api",
        "ftp://app.test/",
        "api/x",
        "app.test",
        "app.test:443",
        "//",
        "http:\\\\app.test\\",
        "?x",
    ] {
        if target == "//" {
            continue; // a path, for the path rules to judge
        }
        bad(&[format!("GET {target} HTTP/1.1\r\nHost: app.test\r\n\r\n").as_bytes()]);
    }
    bad(&[b"GET http://a/ HTTP/1.0\r\n\r\n"]);
}

#[test]
fn http_17_asterisk_and_connect() {
    bad(&[b"GET * HTTP/1.1\r\nHost: a\r\n\r\n"]);
    assert_eq!(accepted(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").target, b"*".as_slice());
    assert_eq!(refused(b"CONNECT evil:443 HTTP/1.1\r\nHost: evil:443\r\n\r\n"), Code::MethodNotAllowed);
    assert_eq!(refused(b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n"), Code::MethodNotAllowed);
}

#[test]
fn http_20_expectations() {
    accepted(post("Expect: 100-Continue\r\nContent-Length: 1"));
    for value in ["100-continue, x", "x", "", "200-ok", "100-continue\r\nExpect: 100-continue"] {
        assert_eq!(refused(post(format!("Expect: {value}"))), Code::ExpectationFailed);
    }
}

#[test]
fn http_26_trace() {
    assert_eq!(refused(b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"), Code::MethodNotAllowed);
}

#[test]
fn ws_03_an_upgrade_needs_both_fields_and_no_body() {
    let upgrade = |fields: &str| accepted(post(fields)).upgrade;
    assert_eq!(upgrade("Upgrade: websocket\r\nConnection: keep-alive, Upgrade"), Upgrade::WebSocket);
    assert_eq!(upgrade("Connection: upgrade\r\nUpgrade: WebSocket\r\nContent-Length: 0"), Upgrade::WebSocket);
    assert_eq!(upgrade("Upgrade: h2c\r\nConnection: Upgrade"), Upgrade::Other);
    assert_eq!(upgrade("Upgrade: websocket, h2c\r\nConnection: Upgrade"), Upgrade::Other);
    assert_eq!(upgrade("Upgrade: websocket\r\nUpgrade: h2c\r\nConnection: Upgrade"), Upgrade::Other);
    assert_eq!(upgrade("Upgrade: websocket"), Upgrade::No);
    assert_eq!(upgrade("Upgrade: websocket\r\nConnection: close"), Upgrade::No);
    assert_eq!(upgrade("Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 3"), Upgrade::No);
    let old = accepted(b"GET / HTTP/1.0\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
    assert_eq!(old.upgrade, Upgrade::No);
}

#[test]
fn dos_03_header_limits() {
    let fields = |count: usize| (1..count).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
    accepted(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(20)));
    assert_eq!(refused(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(21))), Code::HeadersTooLarge);

    let sized = |bytes: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(bytes - 14));
    accepted(sized(4096));
    assert_eq!(refused(sized(4097)), Code::HeadersTooLarge);
    assert_eq!(refused(format!("GET / HTTP/1.1\r\n{}", "x".repeat(5000))), Code::HeadersTooLarge);
}

#[test]
fn dos_04_target_limit() {
    let request = |bytes: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(bytes - 1));
    accepted(request(1024));
    assert_eq!(refused(request(1025)), Code::UriTooLong);
}

/// What a chunked body comes out as, and what of the input was left.
fn chunked(bytes: &[u8]) -> Result<(Vec<u8>, bool, Vec<u8>), Refusal> {
    read_body(Body::Chunked, &[bytes])
}

fn read_body(body: Body, pieces: &[&[u8]]) -> Result<(Vec<u8>, bool, Vec<u8>), Refusal> {
    let mut reader = BodyReader::new(body);
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        reader.read(&mut input, &mut output)?;
    }
    Ok((output.to_vec(), reader.is_done(), input.to_vec()))
}

#[test]
fn a_body_ends_where_its_framing_says() {
    assert_eq!(read_body(Body::Length(3), &[b"ab", b"cGET"]).unwrap(), (b"abc".to_vec(), true, b"GET".to_vec()));
    assert_eq!(read_body(Body::None, &[b"GET"]).unwrap(), (vec![], true, b"GET".to_vec()));
    assert!(!read_body(Body::Length(3), &[b"ab"]).unwrap().1);
    let whole = b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n";
    assert_eq!(
        chunked(&[whole.as_slice(), b"GET"].concat()).unwrap(),
        (b"3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\n".to_vec(), true, b"GET".to_vec())
    );
}

/// ASVS-1.4.2.
#[test]
fn http_06_chunk_sizes() {
    for size in [
        "0x5",
        "+5",
        "-1",
        "",
        "5 ",
        " 5",
        "5\t",
        "00000000000000005",
        "8000000000000000",
        "ffffffffffffffff",
        "5;",
        "5;=a",
        "5;a=",
        "5;a=\"b\"",
        "5;a=b=c",
        "5; a",
        "5;a\n",
        "g",
    ] {
        let body = format!("{size}\r\nabcde\r\n0\r\n\r\n");
        assert!(chunked(body.as_bytes()).is_err(), "{size:?}");
    }
    assert!(chunked(format!("5;a={}\r\n", "b".repeat(1 << 20)).as_bytes()).is_err());
    let many = "1;abcdefgh\r\nx\r\n".repeat(1000);
    assert!(chunked(many.as_bytes()).is_err(), "extensions are bounded over the whole body");
    let (body, done, _) = chunked(b"0005;a=b;c\r\nabcde\r\n000\r\n\r\n").unwrap();
    assert!(done);
    assert_eq!(body, b"5\r\nabcde\r\n0\r\n\r\n");
}

#[test]
fn http_07_chunk_line_ends() {
    for body in [
        "5\nabcde\r\n0\r\n\r\n",
        "5\r\nabcde\n0\r\n\r\n",
        "5\r\nabcde\r\n0\n\r\n",
        "5\r\nabcde\r\n0\r\n\n",
        "5\r\r\nabcde\r\n0\r\n\r\n",
        "5\r\nabcdeXX\r\n0\r\n\r\n",
        "5\r\nabcdeXX0\r\n\r\n",
        "5\r\nabcde0\r\n\r\n",
        "5\rabcde\r\n0\r\n\r\n",
        "5;\nX\r\nabcde\r\n0\r\n\r\n",
    ] {
        assert!(chunked(body.as_bytes()).is_err(), "{body:?}");
    }
}

#[test]
fn http_08_trailers_are_dropped() {
    let (body, done, rest) =
        chunked(b"1\r\nx\r\n0\r\nAuthorization: Bearer x\r\nContent-Length: 7\r\n\r\nGET").unwrap();
    assert_eq!((body.as_slice(), done, rest.as_slice()), (&b"1\r\nx\r\n0\r\n\r\n"[..], true, &b"GET"[..]));
    for trailer in ["a b: c\r\n", ": c\r\n", "a\r\n", " a: b\r\n", "a: b\nc: d\r\n", "a: \0\r\n", "a: b\rc\r\n"] {
        assert!(chunked(format!("0\r\n{trailer}\r\n").as_bytes()).is_err(), "{trailer:?}");
    }
    let long = format!("0\r\na: {}\r\n\r\n", "b".repeat(9000));
    assert_eq!(chunked(long.as_bytes()).unwrap_err().code, Code::HeadersTooLarge);
}

/// Pieces of requests and of what is sent to confuse readers of requests.
fn fragments() -> impl Strategy<Value = Vec<u8>> {
    let fragment = prop_oneof![
        8 => prop::sample::select(vec![
            &b"GET"[..], b"POST", b" ", b"/", b"/a?b", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"Host: a\r\n", b"Host:", b"\r\n", b"\r", b"\n", b"\t", b":",
            b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n\r\n", b"5\r\nabcde\r\n", b"0\r\n\r\n", b"http://a/", b"*", b"OPTIONS",
            b"Upgrade: websocket\r\n", b"Connection: upgrade\r\n", b"Expect: 100-continue\r\n", b"X: y\r\n",
        ]).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 1..4),
    ];
    prop::collection::vec(fragment, 0..14).prop_map(|all| all.concat())
}

fn requests() -> impl Strategy<Value = Vec<u8>> {
    (fragments(), any::<bool>())
        .prop_map(|(tail, begin)| if begin { [b"POST /a HTTP/1.1\r\nHost: a\r\n", &tail[..]].concat() } else { tail })
}

/// The verdict in a form that can be compared.
fn verdict_in_pieces(bytes: &[u8], cuts: &[usize]) -> (String, Vec<u8>) {
    let mut reader = HeadReader::new(LIMITS);
    let mut buffer = BytesMut::new();
    let mut from = 0;
    let mut verdict = Verdict::NeedMore;
    for to in cuts.iter().copied().chain([bytes.len()]) {
        let to = to.clamp(from, bytes.len());
        buffer.extend_from_slice(&bytes[from..to]);
        from = to;
        if matches!(verdict, Verdict::NeedMore) {
            verdict = reader.read(&mut buffer);
        }
    }
    let rest = if matches!(verdict, Verdict::Head(_)) { buffer.to_vec() } else { vec![] };
    (format!("{verdict:?}"), rest)
}

/// Long values are judged many bytes at a time: no place in them may be overlooked, and none counted twice.
#[test]
fn http_27_one_bad_byte_is_found_wherever_it_stands() {
    for length in [0, 1, 31, 32, 33, 63, 64, 65, 100] {
        for (at, byte) in
            (0..length).flat_map(|at| [0, b'\t', b'\n', b'\r', 0x1f, b' ', 0x7f, 0x80, 0xff].map(|b| (at, b)))
        {
            let mut value = vec![b'v'; length];
            value[at] = byte;
            let bytes = [b"GET / HTTP/1.1\r\nHost: a\r\nX:", &value[..], b"\r\n\r\n"].concat();
            let each: Vec<_> = (0..bytes.len()).collect();
            let whole = verdict_in_pieces(&bytes, &[]);
            assert_eq!(whole, verdict_in_pieces(&bytes, &each), "{byte:#x} at {at} of {length}");
            let good = matches!(byte, b'\t' | b' ' | 0x80 | 0xff);
            assert_eq!(whole.0.starts_with("Head"), good, "{byte:#x} at {at} of {length}");
        }
    }
}

/// The limit strikes at the same byte, however the bytes come.
#[test]
fn dos_03_a_long_value_ends_at_the_limit() {
    for length in 0..2 * LIMITS.header_bytes {
        let bytes = [b"GET / HTTP/1.1\r\nHost: a\r\nX:", &vec![b'v'; length][..]].concat();
        let each: Vec<_> = (0..bytes.len()).collect();
        let whole = verdict_in_pieces(&bytes, &[]);
        assert_eq!(whole, verdict_in_pieces(&bytes, &each));
        assert_eq!(whole.0.starts_with("Refuse"), length > LIMITS.header_bytes - "Host: a\r\nX:".len());
    }
}

proptest! {
    #[test]
    fn a_verdict_does_not_depend_on_packets(bytes in requests(), mut cuts in prop::collection::vec(0_usize..200, 0..8)) {
        cuts.sort_unstable();
        let each: Vec<_> = (0..bytes.len()).collect();
        let whole = verdict_in_pieces(&bytes, &[]);
        prop_assert_eq!(&whole, &verdict_in_pieces(&bytes, &cuts));
        prop_assert_eq!(&whole, &verdict_in_pieces(&bytes, &each));
    }

    #[test]
    fn a_body_does_not_depend_on_packets(bytes in fragments(), cut in 0_usize..60) {
        let (front, back) = bytes.split_at(cut.min(bytes.len()));
        for body in [Body::Chunked, Body::Length(7)] {
            let whole = read_body(body, &[&bytes]);
            prop_assert_eq!(&whole, &read_body(body, &[front, back]));
            let each: Vec<_> = bytes.chunks(1).collect();
            prop_assert_eq!(&whole, &read_body(body, &each));
        }
    }

    /// The parser behind us reads what we accepted as what we took it for.
    #[test]
    fn http_27_another_parser_agrees_on_accepted_heads(bytes in requests()) {
        if let Verdict::Head(head) = judge(&bytes) {
            let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
            let mut request = httparse::Request::new(&mut fields);
            prop_assert_eq!(request.parse(&head.bytes), Ok(httparse::Status::Complete(head.bytes.len())));
            prop_assert_eq!(request.method.map(str::as_bytes), Some(&head.method[..]));
            prop_assert_eq!(request.path.map(str::as_bytes), Some(&head.target[..]));
            let count = |name: &str| request.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name)).count();
            prop_assert_eq!(count("transfer-encoding"), usize::from(head.body == Body::Chunked));
            prop_assert!(count("content-length") <= 1);
            prop_assert_eq!(count("host"), usize::from(head.host.is_some()));
        }
    }

    /// And so does Pingora, which would answer what it refuses in its own words.
    #[test]
    fn http_27_pingora_takes_every_accepted_head(bytes in requests()) {
        if let Verdict::Head(head) = judge(&bytes) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (mut near, far) = tokio::io::duplex(1 << 16);
                tokio::io::AsyncWriteExt::write_all(&mut near, &head.bytes).await.unwrap();
                let mut session = pingora::protocols::http::ServerSession::new_http1(Box::new(far));
                prop_assert!(matches!(session.read_request().await, Ok(true)));
                prop_assert_eq!(session.req_header().method.as_str().as_bytes(), &head.method[..]);
                prop_assert_eq!(session.req_header().raw_path(), &head.target[..]);
                prop_assert_eq!(session.is_body_empty(), head.body == Body::None);
                Ok(())
            })?;
        }
    }

    #[test]
    fn any_bytes_get_a_verdict(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = judge(&bytes);
        let _ = chunked(&bytes);
    }
}
