//! The answer of `holdfast explain`, for people.

use std::io::{self, Write};

use super::answer::{AuthorityShown, Contribution, Explanation, Present, RouteShown, TokenShown};

/// Writes it. `file` is the configuration's name.
pub(super) fn write(out: &mut impl Write, shown: &Explanation, file: &str) -> io::Result<()> {
    writeln!(out, "{} {}", shown.method, shown.url)?;
    for listener in &shown.listeners {
        let (name, address) = (&listener.name, &listener.address);
        let asked = listener.client_certificates;
        let policy = listener.policy.iter().map(|policy| format!("TLS policy {policy}, "));
        let policy: String = policy.collect();
        let plain = if listener.tls { "" } else { "without TLS, " };
        let header = if listener.proxy_protocol { "behind a PROXY header, " } else { "" };
        let said = format!("{plain}{header}{policy}client certificates: {asked}");
        writeln!(out, "listener   {name} ({address}, {said})")?;
    }
    if let Some(own) = &shown.own {
        let cluster = own.cluster.iter().map(|cluster| format!("cluster {cluster}"));
        let of: String = cluster.chain(own.resource.clone()).collect();
        writeln!(out, "answered   by the edge itself: {} of {of}", own.what)?;
        for (index, line) in own.present.iter().enumerate() {
            writeln!(out, "{:<10} {line}", if index == 0 { "present" } else { "" })?;
        }
    }
    if let Some(route) = &shown.route {
        let unbound = if route.allow_unbound { ", unbound tokens pass" } else { "" };
        let (name, line, role) = (&route.name, route.line, route.role);
        let answered = if route.answer.is_some() { ", answered by the edge itself" } else { "" };
        writeln!(out, "route      {name} ({file}:{line}), {role}{answered}{unbound}")?;
        if let Some(url) = &route.resource_metadata {
            writeln!(out, "metadata   {url}")?;
        }
        write_browsers_and_streams(out, route)?;
    }
    if let Some(upstream) = &shown.upstream {
        let servers = upstream.servers.join(", ");
        writeln!(
            out,
            "upstream   {} ({servers}), credentials {}",
            upstream.name, upstream.credentials
        )?;
    }
    if let Some(authority) = &shown.authority {
        write_authority(out, authority)?;
    }
    if let Some(tenant) = &shown.tenant {
        writeln!(out, "tenant     {tenant}")?;
    }
    write_rule(out, shown)?;
    if let Some(token) = &shown.token {
        write_token(out, token)?;
    }
    for (index, way) in shown.present.iter().enumerate() {
        write_way(out, way, if index == 0 { "present" } else { "or" })?;
    }
    let open = shown.route.is_some() && shown.requirement.is_none() && shown.present.is_empty();
    if open && shown.refused.is_none() {
        writeln!(out, "present    nothing: the route reads no token")?;
    }
    for note in &shown.notes {
        writeln!(out, "note       {note}")?;
    }
    if let Some(refused) = &shown.refused {
        writeln!(out, "refused    {} {}: {}", refused.status, refused.code, refused.why)?;
    }
    Ok(())
}

fn write_browsers_and_streams(out: &mut impl Write, route: &RouteShown) -> io::Result<()> {
    match route.cors {
        Some("edge") => {
            let origins = route.cors_origins.join(", ");
            writeln!(out, "cors       the edge answers preflights; answers are for {origins}")?;
        }
        Some(_) => writeln!(out, "cors       preflights go to the upstream, without a token")?,
        None => {}
    }
    if let Some(age) = &route.stream_max_age {
        writeln!(
            out,
            "stream     cut {age} after its admission, with token or certificate if sooner"
        )?;
    }
    Ok(())
}

fn write_authority(out: &mut impl Write, authority: &AuthorityShown) -> io::Result<()> {
    let binding = authority.binding.map(|binding| {
        let who = if binding == "native" { "the server" } else { "the edge" };
        format!("binding {binding}: {who} binds")
    });
    let nonces = authority.nonces.map(|whose| match whose {
        "edge" => "nonces are the edge's".to_owned(),
        _ => "nonces are the server's, whose challenges pass".to_owned(),
    });
    let issuer = authority.issuer.iter().map(|issuer| format!("of {issuer}"));
    let head: Vec<_> = issuer.chain(binding).chain(nonces).collect();
    let head = (!head.is_empty()).then(|| head.join(", "));
    for (index, line) in head.iter().chain(&authority.does).enumerate() {
        writeln!(out, "{:10} {line}", if index == 0 { "server" } else { "" })?;
    }
    Ok(())
}

fn write_rule(out: &mut impl Write, shown: &Explanation) -> io::Result<()> {
    let width = shown.rule.iter().map(|said| said.scope.len()).max().unwrap_or_default();
    for (index, said) in shown.rule.iter().enumerate() {
        let head = if index == 0 { "rule" } else { "" };
        writeln!(out, "{head:10} {:width$}  {}", said.scope, says(said))?;
    }
    if let Some(all) = &shown.requirement {
        let algorithms = all.algorithms.join(" ");
        let nonce = all.nonce;
        let share = all.enforce_percent.map(|percent| format!(" but for {percent} % of clients"));
        writeln!(
            out,
            "{:10} {:width$}  require {}, mode {}{}, nonce {nonce}, allowedAlgorithms {algorithms}",
            "",
            "in all",
            all.require,
            all.mode,
            share.unwrap_or_default()
        )?;
        if let Some(client) = &all.client {
            let (id, from) = (&client.id, client.enforced_from_percent);
            let stands = if client.enforced { "enforced" } else { "observed" };
            writeln!(out, "client     {id} is {stands}; enforcePercent has it from {from} on")?;
        }
    }
    Ok(())
}

fn says(said: &Contribution) -> String {
    let overrides = if said.overrides { " (overrides)" } else { "" };
    match said.says.as_slice() {
        [] => "adds nothing".to_owned(),
        says => format!("{}{overrides}", says.join(", ")),
    }
}

fn write_token(out: &mut impl Write, token: &TokenShown) -> io::Result<()> {
    for (index, issuer) in token.issuers.iter().enumerate() {
        let head = if index == 0 { "token" } else { "or" };
        writeln!(
            out,
            "{head:10} iss {}, aud with {}",
            issuer.issuer,
            issuer.audiences.join(" or ")
        )?;
        if let Some(of) = &issuer.introspection {
            writeln!(out, "{:10} the issuer is asked about a token that is {of}", "")?;
        }
        if let Some(recorded) = &issuer.recorded {
            writeln!(out, "{:10} bound by the edge; {recorded}", "")?;
        }
    }
    if !token.audiences.is_empty() {
        writeln!(out, "{:10} aud also with {}", "", token.audiences.join(" or "))?;
    }
    if !token.scopes.is_empty() {
        writeln!(out, "{:10} scope with {}", "", token.scopes.join(" and "))?;
    }
    if let Some(max_age) = &token.max_age {
        writeln!(out, "{:10} auth_time at most {max_age} ago", "")?;
    }
    if !token.acr_values.is_empty() {
        writeln!(out, "{:10} acr {}", "", token.acr_values.join(" or "))?;
    }
    Ok(())
}

fn write_way(out: &mut impl Write, way: &Present, head: &str) -> io::Result<()> {
    let bound = match way.cnf.as_slice() {
        [] => "not bound".to_owned(),
        members => format!("cnf: {}", members.join(" and ")),
    };
    let [key, certificate] = match way.authorization {
        Some(scheme) => {
            writeln!(out, "{head:10} Authorization: {scheme} <token, {bound}>")?;
            ["the key of jkt", "the client certificate of x5t#S256"]
        }
        None => {
            writeln!(out, "{head:10} a form, with what the server asks for to know the client")?;
            [
                "the key that the token is to be bound to",
                "the client certificate that it is to be bound to,",
            ]
        }
    };
    if let Some(proof) = &way.proof {
        writeln!(out, "{:10} DPoP: <proof by {key}, {}>", "", proof.algorithms.join(" "))?;
        writeln!(out, "{:13} htm   {}", "", proof.htm)?;
        writeln!(out, "{:13} htu   {}", "", proof.htu)?;
        writeln!(out, "{:13} iat   {}", "", proof.iat)?;
        writeln!(out, "{:13} jti   new each time", "")?;
        if let Some(ath) = proof.ath {
            writeln!(out, "{:13} ath   {ath}", "")?;
        }
        if proof.nonce {
            writeln!(out, "{:13} nonce the last DPoP-Nonce of this origin", "")?;
        }
    }
    if way.client_certificate {
        writeln!(out, "{:10} {certificate} on the TLS connection", "")?;
    }
    Ok(())
}
