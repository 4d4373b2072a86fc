//! `deploy/kubernetes`: rendered by kubectl, held against the schemas, and the configuration in it checked
//! by the program itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::scratch::{PROGRAM, installed, put, run, said, source, text};

/// What people render: a name below `deploy/kubernetes`.
const RENDERED: [&str; 3] = ["base", "single", "example"];
/// The oldest version with preStop's `sleep` on by default, and the newest that is known.
const VERSIONS: [&str; 2] = ["1.30", "1.37"];

/// What `kubectl kustomize` makes of `deploy/kubernetes/NAME`.
fn render(name: &str) -> Option<Vec<Value>> {
    let kubectl = installed("tools/bin/kubectl")?;
    let directory = source("deploy/kubernetes").join(name);
    let rendered = run(Command::new(kubectl).arg("kustomize").arg(directory));
    Some(documents(&rendered))
}

fn documents(yaml: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(yaml);
    documents.map(|document| Value::deserialize(document).expect("YAML")).collect()
}

/// Those of a kind.
fn of_kind<'a>(all: &'a [Value], kind: &str) -> Vec<&'a Value> {
    all.iter().filter(|it| it["kind"] == kind).collect()
}

/// The one of its kind and name; a name's hash does not count.
fn one<'a>(all: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let is = |it: &&Value| {
        let own = it["metadata"]["name"].as_str().unwrap_or_default();
        own == name || kind == "ConfigMap" && own.starts_with(&format!("{name}-"))
    };
    let found: Vec<_> = of_kind(all, kind).into_iter().filter(is).collect();
    assert_eq!(found.len(), 1, "{kind} {name}");
    found[0]
}

fn container(all: &[Value]) -> &Value {
    &pod(all)["containers"][0]
}

fn pod(all: &[Value]) -> &Value {
    &one(all, "Deployment", "holdfast")["spec"]["template"]["spec"]
}

/// What the schemas have against these; `None` where the checkers are not installed.
fn faults(all: &[Value]) -> Option<Vec<String>> {
    let (python, _) =
        (installed("python/bin/kubernetes-validate")?, installed("python/installed")?);
    let (custom, own): (Vec<_>, Vec<_>) = all.iter().partition(|it| {
        it["apiVersion"]
            .as_str()
            .is_some_and(|version| version.starts_with("monitoring.coreos.com/"))
    });
    let scratch = tempfile::tempdir().expect("a directory");
    let mut faults = Vec::new();
    for resource in own {
        let file = scratch.path().join("resource.yaml");
        put(&file, resource.to_string().as_bytes(), 0o644);
        for version in VERSIONS {
            let mut command = Command::new(&python);
            command.args(["--strict", "--quiet", "--kubernetes-version", version]).arg(&file);
            // It also says where there is no schema, and means well by it.
            let output = command.output().expect("Python");
            if !output.status.success() || !said(&output).trim().is_empty() {
                faults.push(format!("{version}: {}", said(&output)));
            }
        }
    }
    let mut node = Command::new("node");
    node.arg("operator.mjs").arg(Value::from_iter(custom.into_iter().cloned()).to_string());
    let output = node.current_dir(source("tests/node")).output().expect("node");
    faults.extend(said(&output).lines().map(str::to_owned));
    assert!(output.status.success() || !faults.is_empty(), "{}", output.status);
    Some(faults)
}

#[test]
fn manifests_hold_to_their_schemas() {
    for name in RENDERED {
        let Some(faults) = render(name).and_then(|all| faults(&all)) else { return };
        assert!(faults.is_empty(), "{name}: {faults:#?}");
    }
}

/// That the checkers see what they are there for.
#[test]
fn a_broken_field_is_found() {
    let Some(good) = render("example") else { return };
    let breakages = [
        ("Deployment", "/spec/template/spec/containers/0/ports/0/containerPort", json!("8443")),
        (
            "Deployment",
            "/spec/template/spec/containers/0/securityContext/readOnlyRootFileSystem",
            json!(true),
        ),
        ("Deployment", "/spec/template/spec/containers/0/lifecycle/preStop/sleep/second", json!(1)),
        ("NetworkPolicy", "/spec/egres", json!([])),
        ("PodDisruptionBudget", "/spec/unhealthyPodEvictionPolicy", json!(7)),
        ("ConfigMap", "/data/authority.yaml", json!({})),
        ("ServiceMonitor", "/spec/endpoints/0/interval", json!("15 s")),
        ("ServiceMonitor", "/spec/endpoints/0/tlsConfig/keySecret", json!({"name": "x"})),
        ("PrometheusRule", "/spec/groups/0/rules/0/expr", json!(null)),
    ];
    for (kind, path, value) in breakages {
        let mut broken = good.clone();
        let at = broken.iter().position(|it| it["kind"] == kind).expect("one of the kind");
        let (parent, key) = path.rsplit_once('/').expect("a path");
        broken[at].pointer_mut(parent).expect(parent)[key] = value;
        let Some(faults) = faults(&broken[at..=at]) else { return };
        assert!(!faults.is_empty(), "{kind} {path}");
    }
}

/// Pod Security Standards, "restricted", and what it leaves open.
#[test]
fn pods_may_do_little() {
    for name in RENDERED {
        let Some(all) = render(name) else { return };
        let (pod, container) = (pod(&all), container(&all));
        assert_eq!(pod["containers"].as_array().map(Vec::len), Some(1), "{name}");
        let of_pod = &pod["securityContext"];
        assert_eq!(of_pod["runAsNonRoot"], true, "{name}");
        assert_eq!(of_pod["seccompProfile"], json!({"type": "RuntimeDefault"}), "{name}");
        for key in ["runAsUser", "runAsGroup", "fsGroup"] {
            assert_eq!(of_pod[key], user(), "{name} {key}: that of the container");
        }
        let own = json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                         "capabilities": {"drop": ["ALL"]}});
        assert_eq!(container["securityContext"], own, "{name}");
        assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
        for key in ["hostNetwork", "hostPID", "hostIPC"] {
            assert_eq!(pod[key], Value::Null, "{name} {key}");
        }
        for volume in pod["volumes"].as_array().expect("volumes") {
            assert_eq!(volume["hostPath"], Value::Null, "{name}");
        }
        assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
    }
}

/// The user that `deploy/container` makes and runs as.
fn user() -> u64 {
    let dockerfile = text("deploy/container/Dockerfile");
    let user = dockerfile.lines().find_map(|line| line.strip_prefix("USER ")).expect("USER");
    user.split(':').next().and_then(|user| user.parse().ok()).expect("a number")
}

#[test]
fn a_pod_has_time_to_drain() {
    for name in RENDERED {
        let Some(all) = render(name) else { return };
        let config = configuration(&all);
        let drain = config["edge"]["drainTimeout"].as_str().expect("drainTimeout");
        let drain: u64 = drain.trim_end_matches('s').parse().expect("seconds");
        let pause = container(&all)["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64();
        let pause = pause.expect("a pause until nobody is sent to it");
        let grace = pod(&all)["terminationGracePeriodSeconds"].as_u64().expect("seconds");
        assert!(pause >= 5 && grace >= pause + drain + 5, "{name}: {grace} {pause} {drain}");
    }
}

/// `authority.yaml` as it stands in the config map.
fn configuration(all: &[Value]) -> Value {
    let text = one(all, "ConfigMap", "holdfast")["data"]["authority.yaml"].as_str();
    documents(text.expect("authority.yaml")).remove(0)
}

/// Writes what the volume `configuration` holds, with secrets that are made here.
fn project(all: &[Value], directory: &Path) {
    let volumes = pod(all)["volumes"].as_array().expect("volumes");
    let volume = volumes.iter().find(|it| it["name"] == "configuration").expect("the volume");
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params =
        rcgen::CertificateParams::new(vec!["api.example.com".to_owned()]).expect("a name");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).expect("a certificate").pem();
    for source in volume["projected"]["sources"].as_array().expect("sources") {
        if let Some(name) = source["configMap"]["name"].as_str() {
            let map =
                of_kind(all, "ConfigMap").into_iter().find(|it| it["metadata"]["name"] == name);
            let files = map.expect("the map that the pod names")["data"].as_object().expect("data");
            for (name, content) in files {
                put(&directory.join(name), content.as_str().expect("text").as_bytes(), 0o440);
            }
        }
        for item in source["secret"]["items"].as_array().into_iter().flatten() {
            let content = match item["key"].as_str().expect("a key") {
                "tls.crt" | "ca.crt" => certificate.clone(),
                "tls.key" => key.serialize_pem(),
                "nonce.key" => "0f".repeat(32),
                "password" => "not a password\n".to_owned(),
                other => panic!("{other}: what is it?"),
            };
            let path = directory.join(item["path"].as_str().expect("a path"));
            put(&path, content.as_bytes(), 0o440);
        }
    }
}

fn check(directory: &Path) -> Value {
    let mut command = Command::new(PROGRAM);
    command.args(["check", "--json", "--config"]).arg(directory.join("authority.yaml"));
    let output = command.output().expect("the program");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)))
}

#[test]
fn the_configuration_is_good_and_names_what_the_pod_has() {
    for name in RENDERED {
        let Some(all) = render(name) else { return };
        let scratch = tempfile::tempdir().expect("a directory");
        project(&all, scratch.path());
        let found = check(scratch.path());
        // The services have names that only the cluster knows.
        let message = |finding: &Value| finding["message"].as_str().unwrap_or_default().to_owned();
        let findings = found["findings"].as_array().expect("findings").iter().map(message);
        let findings: Vec<_> = findings.filter(|it| !it.contains("has no address now")).collect();
        assert!(findings.is_empty(), "{name}: {findings:#?}");

        let config = configuration(&all);
        let port = |address: &Value| -> u64 {
            let port = address.as_str().and_then(|it| it.rsplit_once(':')).expect("an address").1;
            port.parse().expect("a port")
        };
        let edge = &config["edge"];
        let serves = [port(&edge["listeners"][0]["address"]), port(&edge["admin"]["address"])];
        let ports = container(&all)["ports"].as_array().expect("ports").iter();
        let ports: Vec<_> = ports.map(|it| it["containerPort"].as_u64().expect("a port")).collect();
        assert_eq!(ports, serves, "{name}");

        let store = config["store"]["path"].as_str().map(Path::new).and_then(Path::parent);
        let mounts = container(&all)["volumeMounts"].as_array().expect("mounts");
        let state = mounts.iter().find(|it| it["name"] == "state").expect("the volume");
        assert_eq!(state["mountPath"].as_str().map(Path::new), store, "{name}");
        let arguments = &container(&all)["args"];
        assert_eq!(
            *arguments,
            json!(["run", "--config", "/etc/holdfast/authority.yaml"]),
            "{name}"
        );
    }
}

/// More than one pod needs Redis for every proof; `check` says so of the same file with another store.
#[test]
fn pods_that_are_several_share_what_is_used_up() {
    for name in RENDERED {
        let Some(all) = render(name) else { return };
        let config = configuration(&all);
        let dpop = &config["security"]["senderConstraints"]["dpop"];
        let replicas = one(&all, "Deployment", "holdfast")["spec"]["replicas"].as_u64();
        if replicas.expect("a number") == 1 {
            assert_eq!(
                one(&all, "Deployment", "holdfast")["spec"]["strategy"],
                json!({"type": "Recreate"})
            );
            assert!(of_kind(&all, "PodDisruptionBudget").is_empty(), "one pod is never evicted");
            continue;
        }
        assert_eq!(dpop["replay"]["store"], "redis", "{name}");
        assert_eq!(dpop["nonce"]["sharedKeys"], true, "{name}");
        assert_eq!(config["store"]["kind"], "redis", "{name}");

        let scratch = tempfile::tempdir().expect("a directory");
        project(&all, scratch.path());
        let mut alone = config.clone();
        alone["security"]["senderConstraints"]["dpop"]["replay"]["store"] = json!("memory");
        let file = scratch.path().join("authority.yaml");
        fs::remove_file(&file).expect("the file");
        put(&file, alone.to_string().as_bytes(), 0o440);
        let found = check(scratch.path()).to_string();
        assert!(found.contains("sharedKeys"), "{name}: {found}");
    }
}

fn labels(it: &Value) -> BTreeSet<(String, String)> {
    let pairs = it.as_object().into_iter().flatten();
    pairs.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// Whether everything that selects finds what it is to find.
#[test]
fn selectors_find_their_pods_and_ports_have_names() {
    for name in RENDERED {
        let Some(all) = render(name) else { return };
        let deployment = one(&all, "Deployment", "holdfast");
        let pod_labels = labels(&deployment["spec"]["template"]["metadata"]["labels"]);
        let finds = |selector: &Value| {
            let wanted = labels(selector);
            !wanted.is_empty() && wanted.is_subset(&pod_labels)
        };
        assert!(finds(&deployment["spec"]["selector"]["matchLabels"]), "{name}");
        let budgets = of_kind(&all, "PodDisruptionBudget").into_iter();
        let policies = of_kind(&all, "NetworkPolicy").into_iter();
        let spread = pod(&all)["topologySpreadConstraints"].as_array().expect("constraints");
        let selectors = budgets
            .map(|it| &it["spec"]["selector"]["matchLabels"])
            .chain(policies.map(|it| &it["spec"]["podSelector"]["matchLabels"]))
            .chain(spread.iter().map(|it| &it["labelSelector"]["matchLabels"]))
            .chain(of_kind(&all, "Service").into_iter().map(|it| &it["spec"]["selector"]));
        for selector in selectors {
            assert!(finds(selector), "{name}: {selector}");
        }

        let ports = container(&all)["ports"].as_array().expect("ports").iter();
        let ports: Vec<_> = ports.map(|it| &it["name"]).collect();
        for service in of_kind(&all, "Service") {
            for port in service["spec"]["ports"].as_array().expect("ports") {
                assert!(ports.contains(&&port["targetPort"]), "{name}: {port}");
            }
        }
    }
}

/// Nothing goes in or out but by a rule, and no rule is for everybody by mistake.
#[test]
fn the_network_is_closed_but_for_what_is_named() {
    for name in RENDERED {
        let Some(all) = render(name) else { return };
        let base = &one(&all, "NetworkPolicy", "holdfast")["spec"];
        assert_eq!(base["policyTypes"], json!(["Ingress", "Egress"]), "{name}");
        assert_eq!(
            base["ingress"],
            json!([{"ports": [{"port": "https", "protocol": "TCP"}]}]),
            "{name}"
        );
        for policy in of_kind(&all, "NetworkPolicy") {
            for rule in policy["spec"]["egress"].as_array().into_iter().flatten() {
                assert!(
                    rule["ports"].as_array().is_some_and(|it| !it.is_empty()),
                    "{name}: {rule}"
                );
                for peer in rule["to"].as_array().expect("to whom") {
                    let pods = labels(&peer["podSelector"]["matchLabels"]);
                    let named = !pods.is_empty() && !peer["namespaceSelector"].is_null();
                    assert!(named || peer["ipBlock"]["except"].is_array(), "{name}: {peer}");
                    // What kustomize's includeSelectors would write into it.
                    assert!(!pods.iter().any(|(_, value)| value == "holdfast"), "{name}: {peer}");
                }
            }
        }
    }
}

#[test]
fn prometheus_finds_the_edges_and_has_the_rules() {
    let Some(all) = render("example") else { return };
    let monitor = &one(&all, "ServiceMonitor", "holdfast")["spec"];
    let wanted = labels(&monitor["selector"]["matchLabels"]);
    let services = of_kind(&all, "Service").into_iter();
    let found: Vec<_> =
        services.filter(|it| wanted.is_subset(&labels(&it["metadata"]["labels"]))).collect();
    assert_eq!(found.len(), 1, "its own service, and not that for clients");
    let endpoint = &monitor["endpoints"][0];
    assert_eq!(found[0]["spec"]["ports"][0]["name"], endpoint["port"]);
    let job = monitor["jobLabel"].as_str().expect("jobLabel");
    assert_eq!(found[0]["metadata"]["labels"][job], "holdfast", "what the rules ask for");
    assert_eq!(endpoint["scheme"], "https");
    let tls = &endpoint["tlsConfig"];
    for key in ["ca", "cert", "keySecret", "serverName"] {
        assert!(!tls[key].is_null(), "{key}");
    }
    assert!(tls["insecureSkipVerify"].is_null());

    let rules = &documents(&text("deploy/prometheus/holdfast.rules.yaml"))[0]["groups"];
    assert!(rules.as_array().is_some_and(|groups| !groups.is_empty()));
    let made = documents(&text("deploy/kubernetes/monitoring/prometheusrule.yaml"));
    // Not shown: they are long.
    assert!(made[0]["spec"]["groups"] == *rules, "run deploy/kubernetes/monitoring/rules.sh");
    // kustomize writes some line breaks anew, which say nothing in PromQL.
    let rendered = &one(&all, "PrometheusRule", "holdfast")["spec"]["groups"];
    assert!(single_spaced(rendered) == single_spaced(rules), "what is rendered says the same");
}

/// The same with every run of white space in a text as one space.
fn single_spaced(value: &Value) -> Value {
    match value {
        Value::String(text) => json!(text.split_whitespace().collect::<Vec<_>>().join(" ")),
        Value::Array(items) => items.iter().map(single_spaced).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| (key.clone(), single_spaced(value))).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}
