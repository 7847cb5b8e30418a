//! Routes with tokens of their own, whichever grant gets them.

use toml::Table;

use super::client::{Ask, Browser};
use super::exact::{more_routes, route};
use super::inside::Rig;

/// One more route `/api/NAME/` for each name, its `token` a table of these keys.
pub fn routes(config: &mut Table, upstream: &str, tokens: &[(&str, &str)]) {
    for (name, keys) in tokens {
        more_routes(config, &route(&format!("/api/{name}/"), upstream, &format!("token = {{ {keys} }}")));
    }
}

/// Three tokens go to the upstream, the session's own and those of two routes, each time the same to each. Gives them
/// back in this order.
pub async fn each_its_own(rig: &Rig, browser: &Browser, routes: [&str; 2]) -> [String; 3] {
    let mut tokens = Vec::new();
    for path in ["/api", routes[0], routes[1], routes[0], "/api", routes[1]] {
        assert_eq!(browser.fetch(&format!("{path}/x")).await.status, 200, "{path}");
        tokens.push(rig.upstream.last().bearer().expect("a token").to_owned());
    }
    assert_eq!((&tokens[0], &tokens[1], &tokens[2]), (&tokens[4], &tokens[3], &tokens[5]));
    assert!(tokens[0] != tokens[1] && tokens[1] != tokens[2] && tokens[0] != tokens[2]);
    tokens.truncate(3);
    tokens.try_into().expect("three")
}

/// A session that is ended while the token of `/api/orders/` is asked for: that token reaches nobody.
pub async fn ended_meanwhile(rig: &Rig) {
    let browser = rig.gateway.signed_in().await;
    let copy = browser.fork();
    rig.upstream.forget();
    let hold = rig.provider.hold_token_answers();
    let waiting = browser.launch(&Ask::fetch("/api/orders/x")).await;
    hold.wait_for(1).await;
    assert_eq!(copy.send(Ask::fetch("/auth/logout").method("POST")).await.status, 200);
    hold.release();
    let answer = waiting.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (401, "login_required"));
    assert!(rig.upstream.untouched());
}
