//! What is wrong with the files of either side.

use super::*;

/// What `openssl x509 -req` makes without an extension.
const OF_VERSION_1: &str = "-----BEGIN CERTIFICATE-----\n\
    MIIBBTCBrAIBATAKBggqhkjOPQQDAjAOMQwwCgYDVQQDDANhbm4wIBcNMjAwMTAx\n\
    MDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMA4xDDAKBgNVBAMMA2FubjBZMBMGByqG\n\
    SM49AgEGCCqGSM49AwEHA0IABDhCfnAOo+jE39BXti0OeVD4GgyK3w8n5YUBaPfC\n\
    km5cR3fydsAbbD52UtLAS7gvIbRX3LEaGxyvJz+WTv54TUMwCgYIKoZIzj0EAwID\n\
    SAAwRQIhANPDTo8fIjBw40Wxgcj1jpF1wq8CpyfshOKYzgodMch9AiBzGZzv/SXr\n\
    jBaNss3ag1+CdF3c2WkAaZjZeCCDNTs0BQ==\n\
    -----END CERTIFICATE-----\n";

/// What is wrong with the client's files.
fn complaint(scene: &Scene) -> Error {
    let error = client_config(&scene.host, &mut ask_nobody).unwrap_err();
    assert_eq!(error.code, Code::Config);
    error
}

#[test]
fn a_client_certificate_that_is_not_valid_now_is_refused_here() {
    let scene = Scene::new();
    let issue = |change: fn(&mut rcgen::CertificateParams)| {
        scene.clients.issue(&["ann.example.org"], ExtendedKeyUsagePurpose::ClientAuth, change)
    };
    let expired = issue(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 31));
    let early = issue(|params| params.not_before = rcgen::date_time_ymd(3000, 12, 1));
    let path = scene.host.cert.display().to_string();
    let scene = scene.with_client(&expired);
    assert_eq!(complaint(&scene).text, format!("{path}: the certificate expired at 2020-01-31 00:00:00 UTC"));
    let scene = scene.with_client(&early);
    assert_eq!(complaint(&scene).text, format!("{path}: the certificate is not valid before 3000-12-01 00:00:00 UTC"));
}

#[test]
fn a_key_that_is_not_the_certificates_is_refused() {
    let mut scene = Scene::new();
    scene.host.key = scene.files.path("server.key");
    let error = complaint(&scene);
    assert!(error.text.contains("server.key: the private key is not that of the certificate in"), "{error}");
    assert_eq!(
        server(
            &scene.files.path("server.crt"),
            &scene.files.path("client.key"),
            &[scene.files.path("clients-ca.crt")],
            &[]
        )
        .unwrap_err()
        .code,
        Code::Config
    );
}

#[test]
fn a_key_or_certificate_that_is_malformed_inside_is_refused() {
    let scene = Scene::new();
    scene.files.write("client.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    assert!(complaint(&scene).text.contains("client.key: the private key cannot be used"));
    scene.files.write("client.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    assert!(complaint(&scene).text.contains("client.crt: the certificate is malformed"));
    scene.files.write("servers-ca.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let scene = scene.with_client(&Authority::new("x").client("x.test"));
    assert!(complaint(&scene).text.contains("servers-ca.crt: no certificate in it can be a trust anchor"));
}

#[test]
fn a_certificate_of_another_version_is_told_what_makes_it_one_of_the_third() {
    let scene = Scene::new();
    scene.files.write("client.crt", OF_VERSION_1);
    let error = complaint(&scene);
    assert!(error.text.ends_with("client.crt: the certificate is not of version 3 of X.509"), "{error}");
    assert!(error.hint().contains("-extfile"), "{}", error.hint());
}

#[test]
fn every_file_of_the_client_must_be_there() {
    for name in ["client.crt", "client.key", "servers-ca.crt"] {
        let scene = Scene::new();
        fs::remove_file(scene.files.path(name)).unwrap();
        let error = complaint(&scene);
        assert!(error.text.starts_with("cannot read /") && error.text.contains(name), "{error}");
    }
}

#[test]
fn a_servers_key_that_others_can_read_is_refused() {
    let scene = Scene::new();
    let key = scene.files.path("server.key");
    fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
    assert_eq!(scene.server_config().unwrap_err().hint(), format!("chmod 600 {}", key.display()));
}

#[test]
fn a_client_key_that_others_can_read_is_refused() {
    let scene = Scene::new();
    fs::set_permissions(&scene.host.key, Permissions::from_mode(0o644)).unwrap();
    let error = complaint(&scene);
    assert_eq!(error.hint(), format!("chmod 600 {}", scene.host.key.display()));
}

#[test]
fn a_ca_file_keeps_its_good_anchors_beside_a_bad_one() {
    let scene = Scene::new();
    let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    scene.files.write("servers-ca.crt", &format!("{bad}{}", scene.servers.pem()));
    assert_eq!(roots(scene.host.ca.as_deref()).unwrap().len(), 1);
}

#[test]
fn a_server_without_authorities_or_with_a_bad_list_does_not_start() {
    let mut scene = Scene::new();
    let path = |name: &str| scene.files.path(name);
    let error = server(&path("server.crt"), &path("server.key"), &[], &[]).unwrap_err();
    assert_eq!((error.code, error.text.as_str()), (Code::Config, "no `client_ca` is configured"));
    scene.crl = vec![scene.files.path("none.crl")];
    assert!(scene.server_config().unwrap_err().text.contains("none.crl"));
    scene.crl = vec![
        scene.files.write("good.crl", &scene.clients.revocation_list(&[], hours(1))),
        scene.files.write("bad.crl", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"),
    ];
    let error = scene.server_config().unwrap_err();
    assert!(error.text.contains("bad.crl: the revocation list cannot be used"), "{error}");
}

#[test]
fn a_date_is_written_in_utc() {
    assert_eq!(date(0), "1970-01-01 00:00:00 UTC");
    assert_eq!(date(1_709_210_096), "2024-02-29 12:34:56 UTC");
    assert_eq!(date(i64::MAX), "9223372036854775807 seconds after 1970");
}
