//! What is said on the wire instead of a handshake, by either side.

use super::*;

#[tokio::test]
async fn a_client_hello_without_sni_gets_unrecognized_name() {
    let scene = Scene::new();
    let client = client_config(&scene.host, &mut ask_nobody).unwrap();
    let error = scene.connect_as(client, ServerName::try_from("10.0.0.1").unwrap()).await.err().unwrap();
    let tls = error.get_ref().unwrap().downcast_ref::<rustls::Error>().unwrap();
    assert_eq!(*tls, rustls::Error::AlertReceived(rustls::AlertDescription::UnrecognisedName));
    let error = classify_client_error(&error, &scene.host);
    assert_eq!(
        (error.code, error.text.as_str()),
        (Code::HostUnknown, "containers.example.net serves no host named host123.containers.example.net")
    );
}

#[tokio::test]
async fn the_configuration_alone_refuses_a_client_hello_without_sni() {
    let scene = Scene::new();
    let client = client_config(&scene.host, &mut ask_nobody).unwrap();
    let (near, far) = tokio::io::duplex(1 << 16);
    let server = TlsAcceptor::from(Arc::new(scene.server_config().unwrap())).accept(far);
    let client = TlsConnector::from(Arc::new(client)).connect(ServerName::try_from("10.0.0.1").unwrap(), near);
    let (server, client) = tokio::join!(server, client);
    assert!(server.is_err());
    assert!(client.err().unwrap().to_string().contains("AccessDenied"));
}

#[tokio::test]
async fn the_server_does_not_speak_tls_1_2() {
    let mut scene = Scene::new();
    scene.host.min_tls = MinTls::V1_2;
    assert_eq!(scene.connect().await.unwrap().protocol_version(), Some(ProtocolVersion::TLSv1_3));
    let mut roots = RootCertStore::empty();
    add_roots(&mut roots, scene.host.ca.as_deref().unwrap()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let error = scene.connect_as(client, ServerName::try_from(SERVER_NAME).unwrap()).await.err().unwrap();
    let error = classify_client_error(&error, &scene.host);
    assert_eq!(error.code, Code::TlsHandshake);
    assert!(error.text.contains("alert protocol_version"), "{error}");
}

/// What the client says of a peer that sends `answer` and closes.
async fn said_of(answer: &'static [u8], min_tls: MinTls) -> Error {
    let mut scene = Scene::new();
    scene.host.min_tls = min_tls;
    let client = client_config(&scene.host, &mut ask_nobody).unwrap();
    let (near, mut far) = tokio::io::duplex(1 << 16);
    let peer = tokio::spawn(async move {
        let mut hello = [0; 1024];
        let _ = far.read(&mut hello).await.unwrap();
        far.write_all(answer).await.unwrap();
    });
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    let error = TlsConnector::from(Arc::new(client)).connect(name, near).await.err().unwrap();
    peer.await.unwrap();
    classify_handshake_error(&error, &scene.host)
}

#[tokio::test]
async fn a_peer_that_does_not_speak_tls_is_not_tstunnel() {
    for answer in [&b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"[..], b"SSH-2.0-OpenSSH_9.9\r\n"] {
        let error = said_of(answer, MinTls::V1_3).await;
        assert_eq!(
            (error.code, error.text.as_str()),
            (Code::NotTstunnel, "containers.example.net:443 does not speak TLS")
        );
    }
}

#[tokio::test]
async fn a_peer_that_closes_at_once_failed_the_handshake() {
    let error = said_of(b"", MinTls::V1_3).await;
    assert_eq!(
        (error.code, error.text.as_str()),
        (Code::TlsHandshake, "containers.example.net:443 closed the connection during the TLS handshake")
    );
    assert!(error.hint().contains("a server for host123.containers.example.net is up"), "{error:?}");
}

#[tokio::test]
async fn an_alert_is_named_as_the_standard_does() {
    for (number, code, text) in [
        (40, Code::TlsHandshake, "alert handshake_failure"),
        (42, Code::ClientCert, "alert bad_certificate"),
        (51, Code::ClientCert, "alert decrypt_error"),
        (43, Code::ClientCert, "alert unsupported_certificate"),
        (44, Code::ClientCert, "alert certificate_revoked"),
        (45, Code::ClientCert, "alert certificate_expired"),
        (46, Code::ClientCert, "alert certificate_unknown"),
        (48, Code::ClientCert, "alert unknown_ca"),
        (49, Code::ClientCert, "alert access_denied"),
        (70, Code::TlsHandshake, "alert protocol_version"),
        (112, Code::HostUnknown, "serves no host named"),
        (116, Code::ClientCert, "alert certificate_required"),
        (120, Code::NotTstunnel, "does not speak http/1.1"),
        (200, Code::TlsHandshake, "alert number 200"),
    ] {
        let host = Scene::new().host;
        let error = classify_tls_error(&rustls::Error::AlertReceived(rustls::AlertDescription::from(number)), &host);
        assert_eq!(error.code, code, "{error}");
        assert!(error.text.contains(text), "{error}");
    }
    assert_eq!(said_of(&UNRECOGNIZED_NAME, MinTls::V1_3).await.code, Code::HostUnknown);
    assert_eq!(classify_unasked(UNRECOGNIZED_NAME, &Scene::new().host).unwrap().code, Code::HostUnknown);
    assert!(said_of(&[21, 3, 3, 0, 2, 2, 70], MinTls::V1_3).await.hint().contains("min_tls"));
    assert!(!said_of(&[21, 3, 3, 0, 2, 2, 70], MinTls::V1_2).await.hint().contains("min_tls"));
}

#[tokio::test]
async fn whoever_denies_access_before_it_has_seen_a_certificate_means_the_address() {
    let said = said_of(&ACCESS_DENIED, MinTls::V1_3).await;
    assert_eq!(said.code, Code::TooMany);
    assert!(said.text.contains("does not let this address in for now"), "{said}");
    assert_eq!(classify_unasked(ACCESS_DENIED, &Scene::new().host), Some(said));
    assert_eq!(classify_unasked(*b"HTTP/1.", &Scene::new().host), None);
}

#[test]
fn a_tls_error_is_found_however_deep_it_is_wrapped() {
    let inner = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::NoApplicationProtocol);
    let outer = io::Error::other(io::Error::other(inner));
    assert_eq!(classify_client_error(&outer, &Scene::new().host).code, Code::NotTstunnel);
    let other = classify_client_error(&io::Error::other("something"), &Scene::new().host);
    assert_eq!(
        (other.code, other.text.as_str()),
        (Code::TlsHandshake, "the TLS handshake with containers.example.net:443 failed: something")
    );
}
