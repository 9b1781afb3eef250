//! Which clients a server lets in, and what the others are told.

use super::*;

#[tokio::test]
async fn a_client_of_another_authority_is_refused() {
    let error = Scene::new().with_client(&Authority::new("others").client("ann.example.org")).refusal().await;
    assert_eq!(error.code, Code::ClientCert);
    assert!(error.text.starts_with("containers.example.net rejected the certificate /"), "{error}");
    assert!(error.text.ends_with("client.crt (alert unknown_ca)"), "{error}");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let scene = Scene::new();
    let mut roots = RootCertStore::empty();
    add_roots(&mut roots, scene.host.ca.as_deref().unwrap()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let error = scene.connect_as(client, ServerName::try_from(SERVER_NAME).unwrap()).await.err().unwrap();
    let error = classify_client_error(&error, &scene.host);
    assert_eq!(error.code, Code::ClientCert);
    assert!(error.text.ends_with("(alert certificate_required)"), "{error}");
}

#[tokio::test]
async fn a_certificate_that_is_not_for_clients_is_refused() {
    let scene = Scene::new();
    let pair = scene.clients.server("ann.example.org");
    let error = scene.with_client(&pair).refusal().await;
    assert_eq!(error.code, Code::ClientCert);
    assert!(error.text.ends_with("(alert unsupported_certificate)"), "{error}");
}

#[tokio::test]
async fn a_revoked_client_is_refused_and_another_is_not() {
    let mut scene = Scene::new();
    let serial: &[u8] = &[0x11, 0x22];
    let revoked = scene.clients.issue(&["ann.example.org"], ExtendedKeyUsagePurpose::ClientAuth, |params| {
        params.serial_number = Some(SerialNumber::from_slice(serial));
    });
    scene.crl = vec![scene.files.write("clients.crl", &scene.clients.revocation_list(&[serial], hours(1)))];
    assert!(scene.connect().await.is_ok());
    let error = scene.with_client(&revoked).refusal().await;
    assert_eq!(error.code, Code::ClientCert);
    assert!(error.text.ends_with("(alert certificate_revoked)"), "{error}");
}

#[tokio::test]
async fn an_expired_or_foreign_revocation_list_lets_no_client_in() {
    let mut scene = Scene::new();
    scene.crl = vec![scene.files.write("clients.crl", &scene.clients.revocation_list(&[], hours(-1)))];
    assert!(scene.refusal().await.text.ends_with("(alert unknown_ca)"));
    scene.crl = vec![scene.files.write("clients.crl", &Authority::new("others").revocation_list(&[], hours(1)))];
    assert!(scene.refusal().await.text.ends_with("(alert unknown_ca)"));
}

#[tokio::test]
async fn of_two_authorities_of_one_name_the_first_list_decides_and_the_hint_is_true() {
    let mut scene = Scene::new();
    let second = Authority::new("clients");
    let list = |name: &str, of: &Authority| scene.files.write(name, &of.revocation_list(&[], hours(1)));
    let (list_of_first, list_of_second) = (list("first.crl", &scene.clients), list("second.crl", &second));
    let both = [scene.clients.pem() + &second.pem(), second.pem() + &scene.clients.pem()];
    for (authorities, alert) in both.iter().zip(["unknown_ca", "decrypt_error"]) {
        scene.files.write("clients-ca.crt", authorities);
        scene.crl = vec![list_of_first.clone(), list_of_second.clone()];
        assert!(scene.connect().await.is_ok());
        scene.crl.reverse();
        let error = scene.refusal().await;
        assert_eq!(error.code, Code::ClientCert);
        assert!(error.text.ends_with(&format!("(alert {alert})")), "{error}");
        assert!(error.hint().contains("revocation lists"), "{error:?}");
    }
}

#[test]
fn a_clients_own_certificate_among_the_authorities_is_pointed_out() {
    let (files, authority) = (Files::new(), Authority::new("clients"));
    let server = files.write("server.crt", &Authority::new("servers").pem());
    let client = authority.client("ann.example.org");
    let paths = [files.write("ca.crt", &authority.pem()), files.write("ann.crt", &client.cert)];
    let said = doubts(&server, &[], &paths, &[], SystemTime::now()).unwrap();
    let of_authorities: Vec<&String> = said.iter().filter(|doubt| doubt.contains("is no authority")).collect();
    assert!(matches!(of_authorities[..], [doubt] if doubt.starts_with(&paths[1].display().to_string())), "{said:?}");
}

#[test]
fn authorities_of_one_name_are_pointed_out_where_there_are_lists() {
    let (files, first) = (Files::new(), Authority::new("clients"));
    let list = files.write("first.crl", &first.revocation_list(&[], hours(1)));
    let first = files.write("first.crt", &first.pem());
    let second = files.write("second.crt", &Authority::new("clients").pem());
    let third = files.write("third.crt", &Authority::new("other clients").pem());
    let said = |authorities: &[&PathBuf], lists: &[PathBuf]| {
        let authorities: Vec<PathBuf> = authorities.iter().map(|path| (*path).clone()).collect();
        let mut said = doubts(&first, &[], &authorities, lists, SystemTime::now()).unwrap();
        said.retain(|doubt| doubt.contains("both authorities are called"));
        said
    };
    assert_eq!(said(&[&first, &second], &[]), [""; 0]);
    let lists = [list];
    assert_eq!(said(&[&first, &third, &first], &lists), [""; 0]);
    let doubts = said(&[&first, &third, &second], &lists);
    let files = format!("{} and {}: both authorities are called `CN=clients`", first.display(), second.display());
    assert!(doubts.len() == 1 && doubts[0].starts_with(&files), "{doubts:?}");
}

#[tokio::test]
async fn a_certificate_that_was_let_in_is_asked_everything_again() {
    let mut scene = Scene::new();
    let serial: &[u8] = &[0x11, 0x22];
    let known = scene.clients.issue(&["ann.example.org"], ExtendedKeyUsagePurpose::ClientAuth, |params| {
        params.serial_number = Some(SerialNumber::from_slice(serial));
    });
    scene = scene.with_client(&known);
    for _ in 0..2 {
        assert!(scene.connect().await.is_ok());
    }

    // Whoever shows it has another key.
    let mut client = client_config(&scene.host, &mut ask_nobody).unwrap();
    let chain = pem::certificates(&scene.host.cert).unwrap();
    let stranger = scene.files.write_pair("stranger", &scene.clients.client("eve.example.org"));
    let key = pem::private_key(&stranger.1).unwrap();
    let signing_key = provider().key_provider.load_private_key(key).unwrap();
    let pair = rustls::sign::CertifiedKey::new(chain, signing_key);
    client.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(pair));
    let error = scene.connect_as(client, ServerName::try_from(SERVER_NAME).unwrap()).await.err().unwrap();
    let tls = error.get_ref().unwrap().downcast_ref::<rustls::Error>().unwrap();
    assert_eq!(*tls, rustls::Error::AlertReceived(rustls::AlertDescription::DecryptError));

    // Its last byte, which is the signature's, is another.
    let mut forged = pem::certificates(&scene.host.cert).unwrap().remove(0).to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let verifier = client_verifier(&[scene.files.path("clients-ca.crt")], &[]).unwrap();
    let error = verifier.verify_client_cert(&forged.into(), &[], rustls_pki_types::UnixTime::now()).unwrap_err();
    assert_eq!(error, rustls::CertificateError::BadSignature.into());

    // It is revoked.
    scene.crl = vec![scene.files.write("clients.crl", &scene.clients.revocation_list(&[serial], hours(1)))];
    assert!(scene.refusal().await.text.ends_with("(alert certificate_revoked)"));

    // Its authority is not trusted any more.
    scene.crl = Vec::new();
    scene.files.write("clients-ca.crt", &Authority::new("others").pem());
    assert!(scene.refusal().await.text.ends_with("(alert unknown_ca)"));
}
