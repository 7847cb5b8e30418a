//! Who started a request: `Sec-Fetch-*` (W3C Fetch Metadata), `Origin`, and what they prove.

use http::{HeaderMap, HeaderName, Method, header};

use super::origin::Origin;
use super::problem::Shape;

static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
static SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
static SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// What the browser says about the page that caused a request. A page's script can set none of these fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initiator {
    pub site: Site,
    pub mode: Mode,
    pub dest: Dest,
    pub origin: OriginField,
}

/// `Sec-Fetch-Site`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    SameOrigin,
    SameSite,
    CrossSite,
    /// `none`: typed, a bookmark, another program.
    Typed,
    Absent,
    /// Repeated, a list, or no value that the specification knows.
    Unprovable,
}

/// `Sec-Fetch-Mode`. A repeated field is `Other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Navigate,
    NoCors,
    Other,
    Absent,
}

/// `Sec-Fetch-Dest`. A repeated field is `Other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dest {
    /// A tab or window.
    Document,
    /// A frame or an embedded object.
    Frame,
    Other,
    Absent,
}

/// `Origin` (RFC 6454 section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginField {
    Absent,
    Ours,
    /// One of `allowed_origins`, by its index.
    Allowed(usize),
    Foreign,
    Null,
    /// Repeated, a list, or not text.
    Unprovable,
}

/// Whether a request comes from the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    Proven,
    Refused,
}

/// What the configuration and the route ask of a request that could use the session.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// `[csrf] mode = "header"`. False for `/auth/events`, since `EventSource` cannot set a header.
    pub header_mode: bool,
    /// Whether the request carries the header of `[csrf] header`, with whatever value.
    pub header_present: bool,
    /// `on_anonymous = "401"`: even a top-level navigation must come from the app or be typed.
    pub app_navigation_only: bool,
}

/// The fields taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Evidence {
    App,
    Typed,
    /// Neither `Sec-Fetch-Site` nor `Origin`: an old browser, or none.
    Silent,
    Foreign,
    /// One field denies what the other says, or a field says two things.
    Contradictory,
}

impl Initiator {
    /// Reads the fields. Values are compared exactly: browsers write them in one way.
    pub fn read(headers: &HeaderMap, public: &Origin, allowed: &[Origin]) -> Self {
        Self {
            site: match single(headers, &SEC_FETCH_SITE) {
                Field::Absent => Site::Absent,
                Field::One("same-origin") => Site::SameOrigin,
                Field::One("same-site") => Site::SameSite,
                Field::One("cross-site") => Site::CrossSite,
                Field::One("none") => Site::Typed,
                Field::One(_) | Field::Unreadable => Site::Unprovable,
            },
            mode: match single(headers, &SEC_FETCH_MODE) {
                Field::Absent => Mode::Absent,
                Field::One("navigate") => Mode::Navigate,
                Field::One("no-cors") => Mode::NoCors,
                Field::One(_) | Field::Unreadable => Mode::Other,
            },
            dest: match single(headers, &SEC_FETCH_DEST) {
                Field::Absent => Dest::Absent,
                Field::One("document") => Dest::Document,
                Field::One("iframe" | "frame" | "embed" | "object" | "fencedframe") => Dest::Frame,
                Field::One(_) | Field::Unreadable => Dest::Other,
            },
            origin: match single(headers, &header::ORIGIN) {
                Field::Absent => OriginField::Absent,
                Field::One("null") => OriginField::Null,
                Field::One(value) if value == public.as_str() => OriginField::Ours,
                Field::One(value) if value.contains([',', ' ', '\t']) => OriginField::Unprovable,
                Field::One(value) => allowed
                    .iter()
                    .position(|origin| origin.as_str() == value)
                    .map_or(OriginField::Foreign, OriginField::Allowed),
                Field::Unreadable => OriginField::Unprovable,
            },
        }
    }

    /// A page load, in a tab or a frame. A client without fetch metadata is a script.
    pub fn is_navigation(&self) -> bool {
        self.mode == Mode::Navigate
    }

    /// A page load that fills a tab. That its method is GET or HEAD is the caller's to check.
    pub fn is_top_level_navigation(&self) -> bool {
        self.is_navigation() && self.dest == Dest::Document
    }

    /// A page load inside a frame.
    pub fn in_frame(&self) -> bool {
        self.is_navigation() && self.dest == Dest::Frame
    }

    /// Whether people read the answer.
    pub fn wants_html(&self) -> bool {
        self.is_navigation()
    }

    /// The form of a problem that this client reads.
    pub fn shape(&self) -> Shape {
        if self.wants_html() { Shape::Html } else { Shape::Json }
    }

    /// Whether the request admits to another site, or leaves it open by saying two things.
    pub fn names_foreign_site(&self) -> bool {
        matches!(self.evidence(), Evidence::Foreign | Evidence::Contradictory)
    }

    /// Whether a WebSocket handshake may go on: it needs an allowed `Origin` (RFC 6455 section 10.2), because no page
    /// can be kept from opening one and no script can add a header to it.
    pub fn websocket_origin_ok(&self) -> bool {
        matches!(self.origin, OriginField::Ours | OriginField::Allowed(_)) && self.evidence() == Evidence::App
    }

    fn evidence(&self) -> Evidence {
        use OriginField as O;
        match (self.site, self.origin) {
            (Site::Unprovable, _) | (_, O::Unprovable) => Evidence::Contradictory,
            (Site::SameOrigin, O::Absent | O::Ours) => Evidence::App,
            // A form post of a page with `Referrer-Policy: no-referrer` has `Origin: null`, a script's fetch never.
            (Site::SameOrigin, O::Null) if matches!(self.mode, Mode::Navigate | Mode::NoCors) => Evidence::App,
            (Site::SameOrigin, O::Null | O::Foreign | O::Allowed(_)) => Evidence::Contradictory,
            (Site::SameSite | Site::CrossSite, O::Ours) => Evidence::Contradictory,
            (Site::SameSite | Site::CrossSite | Site::Typed | Site::Absent, O::Allowed(_)) => Evidence::App,
            (Site::Typed | Site::Absent, O::Ours) => Evidence::App,
            (Site::SameSite | Site::CrossSite, O::Absent) | (_, O::Foreign | O::Null) => Evidence::Foreign,
            (Site::Typed, O::Absent) => Evidence::Typed,
            (Site::Absent, O::Absent) => Evidence::Silent,
        }
    }
}

/// Judges whether a request that could use the session comes from the app.
pub fn proves_origin(initiator: &Initiator, method: &Method, demand: Demand) -> Proof {
    let evidence = initiator.evidence();
    let reads = matches!(*method, Method::GET | Method::HEAD);
    let page_load = reads && initiator.is_navigation();
    let opens_tab = reads && initiator.is_top_level_navigation();
    let proven = match evidence {
        Evidence::Contradictory => false,
        _ if opens_tab && !demand.app_navigation_only => true,
        Evidence::Foreign => false,
        // A custom header cannot come from another site without a preflight that we refuse.
        _ if demand.header_mode && !page_load => demand.header_present,
        Evidence::App => true,
        Evidence::Typed => opens_tab,
        Evidence::Silent => demand.header_present,
    };
    if proven { Proof::Proven } else { Proof::Refused }
}

/// Whether the request asks for a WebSocket and for nothing else (RFC 6455 section 4.1): `Upgrade: websocket` that
/// `Connection` names. The method is the caller's to check.
pub fn is_websocket_handshake(headers: &HeaderMap) -> bool {
    let upgrade =
        matches!(single(headers, &header::UPGRADE), Field::One(value) if value.eq_ignore_ascii_case("websocket"));
    upgrade
        && headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|option| option.trim().eq_ignore_ascii_case("upgrade"))
}

/// Whether the request is a CORS preflight (Fetch section 3.3.2).
pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

enum Field<'a> {
    Absent,
    One(&'a str),
    /// Repeated or not ASCII.
    Unreadable,
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Field<'a> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Field::Absent,
        (Some(value), None) => value.to_str().map_or(Field::Unreadable, |text| Field::One(text.trim())),
        (Some(_), Some(_)) => Field::Unreadable,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const OURS: &str = "https://app.test";
    const PARTNER: &str = "https://partner.test";

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    fn read(fields: &[(&'static str, &'static str)]) -> Initiator {
        let allowed = [Origin::parse("https://other.test").unwrap(), Origin::parse(PARTNER).unwrap()];
        Initiator::read(&headers(fields), &Origin::parse(OURS).unwrap(), &allowed)
    }

    /// `site mode dest origin`, `-` for absent.
    fn said(line: &'static str) -> Initiator {
        let names = ["sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest", "origin"];
        let fields: Vec<_> = names.into_iter().zip(line.split(' ')).filter(|(_, value)| *value != "-").collect();
        read(&fields)
    }

    const PLAIN: Demand = Demand { header_mode: false, header_present: false, app_navigation_only: false };

    fn proven(line: &'static str, method: Method, demand: Demand) -> bool {
        proves_origin(&said(line), &method, demand) == Proof::Proven
    }

    #[test]
    fn bff_22_origins_are_compared_exactly() {
        assert_eq!(read(&[("origin", OURS)]).origin, OriginField::Ours);
        assert_eq!(read(&[("origin", PARTNER)]).origin, OriginField::Allowed(1));
        assert_eq!(read(&[("origin", "null")]).origin, OriginField::Null);
        for foreign in [
            "https://app.test.evil.test",
            "https://evilapp.test",
            "https://app.test:444",
            "https://app.test:443",
            "http://app.test",
            "https://app.test.",
            "https://APP.test",
            "https://app.test/",
            "",
            "Null",
        ] {
            assert_eq!(read(&[("origin", foreign)]).origin, OriginField::Foreign, "{foreign}");
        }
        for twofold in ["https://app.test, https://app.test", "https://app.test https://evil.test"] {
            assert_eq!(read(&[("origin", twofold)]).origin, OriginField::Unprovable);
        }
        assert_eq!(read(&[("origin", OURS), ("origin", OURS)]).origin, OriginField::Unprovable);
    }

    #[test]
    fn repeated_or_unknown_sites_prove_nothing() {
        for value in ["same-origin, cross-site", "Same-Origin", "", "sameorigin", "same-origin;x"] {
            assert_eq!(read(&[("sec-fetch-site", value)]).site, Site::Unprovable, "{value}");
        }
        let twice = read(&[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "same-origin")]);
        assert_eq!(twice.site, Site::Unprovable);
        assert_eq!(proves_origin(&twice, &Method::GET, Demand { header_present: true, ..PLAIN }), Proof::Refused);
    }

    #[test]
    fn bff_05_a_navigation_says_so() {
        assert!(said("none navigate document").is_top_level_navigation());
        assert!(said("same-origin navigate iframe").in_frame());
        assert!(!said("same-origin cors empty").wants_html());
        assert!(!read(&[("accept", "text/html")]).wants_html(), "without fetch metadata: a script");
        assert!(!read(&[("sec-fetch-mode", "navigate"), ("sec-fetch-mode", "navigate")]).is_navigation());
    }

    #[test]
    fn bff_19_23_what_proves_the_origin() {
        for (line, method, ok) in [
            ("same-origin cors empty -", Method::POST, true),
            ("same-origin cors empty https://app.test", Method::POST, true),
            ("- - - https://app.test", Method::POST, true),
            ("same-origin no-cors image -", Method::GET, true),
            ("same-origin navigate document https://app.test", Method::POST, true),
            ("same-origin navigate iframe -", Method::GET, true),
            // CORS
            ("cross-site cors empty https://partner.test", Method::POST, true),
            ("same-site cors empty https://partner.test", Method::PUT, true),
            ("- - - https://partner.test", Method::POST, true),
            ("cross-site cors empty https://evil.test", Method::POST, false),
            ("- - - https://evil.test", Method::GET, false),
            ("- - - null", Method::POST, false),
            // A sibling is not the app.
            ("same-site cors empty -", Method::GET, false),
            ("same-site navigate document https://b.app.test", Method::POST, false),
            ("cross-site no-cors image -", Method::GET, false),
            ("cross-site navigate iframe -", Method::GET, false),
            ("none cors empty -", Method::GET, false),
            ("none navigate document -", Method::POST, false),
            // Contradictions
            ("cross-site cors empty https://app.test", Method::POST, false),
            ("same-site cors empty https://app.test", Method::POST, false),
            ("cross-site navigate document https://app.test", Method::GET, false),
            ("same-origin cors empty https://evil.test", Method::POST, false),
            ("same-origin cors empty https://partner.test", Method::POST, false),
            ("same-origin cors empty null", Method::POST, false),
            // A form of a page with `Referrer-Policy: no-referrer`
            ("same-origin navigate document null", Method::POST, true),
            ("cross-site navigate document null", Method::POST, false),
            // Nothing said
            ("- - - -", Method::GET, false),
        ] {
            assert_eq!(proven(line, method.clone(), PLAIN), ok, "{method} {line}");
        }
    }

    #[test]
    fn a_link_from_anywhere_opens_the_app_but_not_its_api() {
        let api = Demand { app_navigation_only: true, ..PLAIN };
        for (line, app_ok, api_ok) in [
            ("none navigate document -", true, true),
            ("same-origin navigate document -", true, true),
            ("cross-site navigate document -", true, false),
            ("same-site navigate document -", true, false),
        ] {
            for method in [Method::GET, Method::HEAD] {
                assert_eq!(proven(line, method.clone(), PLAIN), app_ok, "{line}");
                assert_eq!(proven(line, method, api), api_ok, "{line}");
            }
        }
    }

    #[test]
    fn the_header_counts_only_where_nothing_else_is_said() {
        let header = Demand { header_present: true, ..PLAIN };
        assert!(proven("- - - -", Method::POST, header));
        for line in ["none cors empty -", "cross-site cors empty -", "same-site cors empty -", "- - - null"] {
            assert!(!proven(line, Method::POST, header), "{line}");
        }
    }

    #[test]
    fn bff_20_header_mode_asks_for_the_header() {
        let without = Demand { header_mode: true, ..PLAIN };
        let with = Demand { header_present: true, ..without };
        for method in [Method::GET, Method::HEAD, Method::POST, Method::DELETE, Method::OPTIONS] {
            for line in ["same-origin cors empty -", "- - - https://app.test", "- - - -"] {
                assert!(!proven(line, method.clone(), without), "{method} {line}");
                assert!(proven(line, method.clone(), with), "{method} {line}");
            }
        }
        assert!(!proven("same-origin navigate document https://app.test", Method::POST, without));
        assert!(proven("cross-site navigate document -", Method::GET, without), "a link carries no header");
        assert!(proven("same-origin navigate iframe -", Method::GET, without));
        assert!(!proven("cross-site navigate iframe -", Method::GET, without));
        for foreign in
            ["cross-site cors empty -", "same-site cors empty https://b.test", "cross-site cors empty https://app.test"]
        {
            assert!(!proven(foreign, Method::POST, with), "{foreign}");
        }
        assert!(proven("cross-site cors empty https://partner.test", Method::POST, with));
    }

    #[test]
    fn ws_04_a_websocket_needs_an_allowed_origin() {
        for ok in
            ["same-origin websocket empty https://app.test", "- - - https://app.test", "- - - https://partner.test"]
        {
            assert!(said(ok).websocket_origin_ok(), "{ok}");
        }
        for refused in [
            "same-origin websocket empty -",
            "- - - null",
            "- - - https://evil.test",
            "- - - -",
            "cross-site websocket empty https://app.test",
        ] {
            assert!(!said(refused).websocket_origin_ok(), "{refused}");
        }
    }

    #[test]
    fn foreign_sites_are_named() {
        assert!(said("cross-site cors empty https://evil.test").names_foreign_site());
        assert!(said("same-site cors empty -").names_foreign_site());
        assert!(said("- - - null").names_foreign_site());
        assert!(!said("cross-site cors empty https://partner.test").names_foreign_site());
        assert!(!said("- - - -").names_foreign_site());
        assert!(!said("none navigate document -").names_foreign_site());
    }

    #[test]
    fn ws_01_03_only_a_named_websocket_is_one() {
        assert!(is_websocket_handshake(&headers(&[("upgrade", "WebSocket"), ("connection", "keep-alive, Upgrade")])));
        for fields in [
            [("upgrade", "websocket"), ("connection", "keep-alive")],
            [("upgrade", "websocket, h2c"), ("connection", "upgrade")],
            [("upgrade", "h2c"), ("connection", "upgrade")],
        ] {
            assert!(!is_websocket_handshake(&headers(&fields)));
        }
    }

    #[test]
    fn bff_21_preflights() {
        let asks = headers(&[("origin", OURS), ("access-control-request-method", "PUT")]);
        assert!(is_preflight(&Method::OPTIONS, &asks));
        assert!(!is_preflight(&Method::GET, &asks));
        assert!(!is_preflight(&Method::OPTIONS, &headers(&[("origin", OURS)])));
    }
}
