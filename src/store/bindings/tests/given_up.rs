//! A revocation that Redis lost, whose edge is gone.

use super::super::moved;
use super::*;

/// Two edges, of which one has revoked `refresh-1` in what the server is about to lose, and is gone.
async fn one_is_gone(scratch: &TempDir, missing: Duration) -> Option<(Server, SharedBindings)> {
    let mut server = Server::start(scratch.path())?;
    let (own, other) = (registry(scratch, "one.db"), registry(scratch, "two.db"));
    let waits = Waits { settle: Duration::ZERO, missing };
    let (one, two) =
        (edge_with(&server, &own, waits).await, edge_with(&server, &other, waits).await);
    for (name, family) in [("1", "f1"), ("2", "f2")] {
        one.keep(issued(pair(name, Some(1), family)), now()).await.unwrap();
    }
    assert!(server.raw(&["SAVE"]).starts_with("+OK"));
    assert!(revoke(&one, TokenKind::Refresh, "refresh-1", REVOKER).await);
    drop(one);
    server.roll_back();
    Some((server, two))
}

#[tokio::test]
async fn what_is_not_said_again_is_waited_for() {
    let scratch = tempfile::tempdir().unwrap();
    let Some((server, two)) = one_is_gone(&scratch, HOUR).await else { return };
    let [first, second] = ["access-1", "access-2"].map(|token| key(TokenKind::Access, token));
    once_up(&two).await;
    for _ in 0..20 {
        assert!(two.record(first).await.is_err() && two.record(second).await.is_err());
        let on = two.keep(refreshed("2", pair("3", Some(1), "f2")), now()).await;
        assert_eq!(on, Err(BindFault::Down));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(two.trouble().unwrap().contains("has not said again"));
    // A new grant holds up nobody.
    two.keep(issued(pair("4", Some(1), "f4")), now()).await.unwrap();
    assert!(!found(&two, key(TokenKind::Access, "access-4")).await.unwrap().revoked);
    // One with a new file is another edge, and knows nothing.
    let other = registry(&scratch, "three.db");
    let third = edge(&server, &other, Duration::ZERO).await;
    assert!(third.record(first).await.is_err() && third.record(second).await.is_err());
    // It comes back.
    let one = edge(&server, &registry(&scratch, "one.db"), Duration::ZERO).await;
    for edge in [&one, &two, &third] {
        assert!(found(edge, first).await.unwrap().revoked);
        assert!(!found(edge, second).await.unwrap().revoked);
    }
    for _ in 0..3000 {
        if two.trouble().is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it is still waited for");
}

#[tokio::test]
async fn what_nobody_has_said_again_is_given_up() {
    let scratch = tempfile::tempdir().unwrap();
    let missing = Duration::from_secs(2);
    let Some((mut server, two)) = one_is_gone(&scratch, missing).await else { return };
    let [first, second] = ["access-1", "access-2"].map(|token| key(TokenKind::Access, token));
    two.keep(issued(pair("4", Some(1), "f4")), now()).await.ok();
    for token in [first, second] {
        assert!(found(&two, token).await.unwrap().revoked);
    }
    let on = two.keep(refreshed("2", pair("3", Some(1), "f2")), now()).await;
    assert_eq!(on, Err(BindFault::Revoked));
    assert_eq!(two.trouble(), None);
    two.keep(issued(pair("5", Some(1), "f5")), now()).await.unwrap();
    // For good, in other epochs too and whoever comes back; what is of the epoch since is not.
    assert!(server.raw(&["SAVE"]).starts_with("+OK"));
    server.roll_back();
    let one = edge(&server, &registry(&scratch, "one.db"), Duration::ZERO).await;
    for edge in [&one, &two] {
        for (token, revoked) in [("access-1", true), ("access-2", true), ("access-5", false)] {
            let record = found(edge, key(TokenKind::Access, token)).await.unwrap();
            assert_eq!(record.revoked, revoked, "{token}");
        }
    }
    // And nobody takes them elsewhere as good.
    let redis = server.connect().await;
    let mut good = Vec::new();
    for shard in redis.shards() {
        let (found, _) = moved::scan(&redis, shard, 0, now()).await.unwrap();
        for one in found {
            let moved::Found::Token { key, grant_revoked: false, .. } = one else { continue };
            good.push(key);
        }
    }
    let fifth = [key(TokenKind::Access, "access-5"), key(TokenKind::Refresh, "refresh-5")];
    for token in [first, second] {
        assert!(!good.contains(&token));
    }
    assert!(fifth.iter().all(|token| good.contains(token)));
}
