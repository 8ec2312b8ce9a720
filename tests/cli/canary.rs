//! Tests that no output shows a secret, wherever somebody puts it: into each setting, flag and file.
//!
//! The settings come from the registry, so that new settings are tested, too.

use std::ffi::OsString;

use base64::Engine as _;
use filestorage::config::{ConfigFile, Flag, Inputs, SETTINGS, Setting, SettingKind, survey};

use super::*;

/// The secret that no output may hold.
const CANARY: &str = "Cn4ryHunter2";

/// The forms that may also be the name of a queue.
const LOGINS: [&str; 2] = ["login without a scheme", "login with half a scheme"];

/// Key material, which no output may hold in base64 either.
fn key() -> String {
    base64::engine::general_purpose::STANDARD.encode(b"Cn4ryHunter2-Cn4ryHunter2-123456")
}

fn pem() -> String {
    format!("-----BEGIN PRIVATE KEY-----\n{CANARY}MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----\n")
}

fn credentials() -> String {
    let json = json!({
        "type": "service_account",
        "project_id": "p",
        "private_key_id": CANARY,
        "private_key": pem(),
        "client_email": "worker@p.iam.gserviceaccount.com",
    });
    serde_json::to_string_pretty(&json).unwrap()
}

/// Returns the secret in a form in which people paste secrets.
fn forms() -> Vec<(&'static str, String)> {
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    vec![
        ("word", CANARY.to_owned()),
        ("credentials", credentials()),
        ("credentials on one line", credentials().replace('\n', "")),
        ("credentials in base64", base64(&credentials())),
        ("pem", pem()),
        ("key", key()),
        ("token", format!("eyJhbGciOiJIUzI1NiJ9.eyJ{CANARY}zdWIiOiIxMjM0In0.{CANARY}dBjftJeZ4CVP")),
        ("broker", format!("amqp://user:{CANARY}@127.0.0.1:1/v")),
        ("broker of another kind", format!("redis://:{CANARY}@127.0.0.1:1/0")),
        ("broker with a slash in its password", format!("amqp://user:a/{CANARY}@127.0.0.1:1/v")),
        ("broker with a query", format!("amqp://127.0.0.1:1/v?{CANARY}={CANARY}")),
        ("login in a URL", format!("http://{CANARY}:{CANARY}@127.0.0.1:1/")),
        ("token in a URL", format!("http://{CANARY}@127.0.0.1:1")),
        ("query", format!("http://127.0.0.1:1/p?X-Goog-Signature={CANARY}#{CANARY}")),
        (LOGINS[0], format!("user:{CANARY}@127.0.0.1:1//")),
        (LOGINS[1], format!("amqp:/user:{CANARY}@127.0.0.1:1//")),
        ("second line", format!("amqp://127.0.0.1:1//\n{CANARY}\n")),
        ("second URL", format!("amqp://127.0.0.1:1//;{CANARY}")),
        ("bucket", format!("gs://inbox/{CANARY}")),
    ]
}

/// Fails when a text holds the secret in any form.
fn search(text: &str, what: &str) {
    for form in [CANARY.to_owned(), key(), key()[..24].to_owned(), "MIIEvQIBADAN".to_owned()] {
        assert!(!text.contains(&form), "{what}: {form} in {text}");
    }
    let encoded = base64::engine::general_purpose::STANDARD.encode(credentials());
    assert!(!text.contains(&encoded[..40]), "{what}: {text}");
}

/// Tells settings whose value is a name that anybody may know, and a word that may well be one.
fn is_name(setting: &Setting, form: &str) -> bool {
    let name = matches!(
        setting.kind,
        SettingKind::Text
            | SettingKind::Name
            | SettingKind::Queue
            | SettingKind::Queues
            | SettingKind::Path
            | SettingKind::Emulator
    );
    let queue = LOGINS.contains(&form) && matches!(setting.kind, SettingKind::Queue | SettingKind::Queues);
    (form == "word" && name || queue) && setting.secrecy == filestorage::config::Secrecy::Plain
}

/// Returns all texts about settings.
fn said(inputs: &Inputs) -> String {
    let (loaded, faults) = match survey(inputs) {
        Ok(surveyed) => surveyed,
        Err(faults) => return faults.to_string(),
    };
    let rows: Vec<String> = loaded.effective.iter().map(|row| format!("{row:?} {}", row.source)).collect();
    format!("{faults} {faults:?} {} {} {inputs:?}", rows.join("\n"), loaded.warnings.join("\n"))
}

#[test]
fn no_setting_repeats_a_secret_wherever_it_is_given() {
    let folder = tempfile::tempdir().unwrap();
    for (number, (form, secret)) in forms().into_iter().enumerate() {
        let file = folder.path().join(format!("secret-{number}"));
        std::fs::write(&file, &secret).unwrap();
        let file = file.to_str().unwrap();
        for setting in SETTINGS {
            if is_name(setting, form) {
                continue;
            }
            let mut names = vec![setting.name.to_owned()];
            names.extend(setting.file_variant());
            for name in names {
                // In a file it is where it belongs, or a secret of another kind.
                let values = if name.ends_with("_file") { vec![secret.as_str(), file] } else { vec![secret.as_str()] };
                for value in values {
                    let variables = std::iter::once(name.to_ascii_uppercase());
                    let aliases = setting.aliases.iter().filter(|_| name == setting.name).map(|&it| it.to_owned());
                    for variable in variables.chain(aliases) {
                        let environment = [(variable.clone(), OsString::from(value))].into();
                        search(&said(&Inputs { environment, ..Inputs::default() }), &format!("{form} in {variable}"));
                    }
                    let flag = Flag { setting: name.clone(), flag: format!("--{name}"), value: value.to_owned() };
                    search(&said(&Inputs { flags: vec![flag], ..Inputs::default() }), &format!("{form} in --{name}"));
                    let quoted = serde_json::to_string(value).unwrap();
                    for text in [
                        format!("{name} = {quoted}"),
                        format!("{name} = [{quoted}, {quoted}]"),
                        format!("{name} = {{ a = {quoted} }}"),
                    ] {
                        let file = Some(ConfigFile { path: "test.toml".into(), text });
                        search(&said(&Inputs { file, ..Inputs::default() }), &format!("{form} in the file's {name}"));
                    }
                }
            }
        }
        for name in
            ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION"]
                .into_iter()
                .flat_map(|name| [name.to_owned(), format!("{name}_FILE")])
                .chain(["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"].map(str::to_owned))
        {
            let bucket = ("S3_BUCKET_NAME".to_owned(), OsString::from("bucket"));
            let environment = [bucket, (name.clone(), OsString::from(secret.as_str()))].into();
            search(&said(&Inputs { environment, ..Inputs::default() }), &format!("{form} in {name}"));
        }
    }
}

#[test]
fn a_file_that_is_no_configuration_is_not_quoted() {
    let secret = [CANARY, &pem(), &credentials()].map(str::to_owned);
    for text in secret.iter().flat_map(|secret| {
        [
            secret.clone(),
            format!("{secret} = 1"),
            format!("\"{}\" = 1", secret.replace(['\n', '"', '\\'], "")),
            format!("[{}]\na = 1", CANARY),
            format!("[a.{CANARY}]\n[a.{CANARY}]\n"),
            format!("{CANARY} = 1\n{CANARY} = 2\n"),
            format!("celery_broker_url = {secret}"),
            format!("celery_broker_url = \"amqp://u:{secret}"),
            format!("celery_broker_url = 'amqp://u:{CANARY}@h//' {CANARY}"),
            format!("metrics_port = 0x{CANARY}"),
            format!("metrics_port = 1{CANARY}"),
            format!("metrics_port = 1979-05-27T{CANARY}"),
            format!("x = \"\\{CANARY}\""),
            format!("x = [1, {CANARY}]"),
            format!("x = true{CANARY}"),
            format!("a.b = 1\na.{CANARY} = 1\na.{CANARY}.c = 1"),
        ]
    }) {
        let file = Some(ConfigFile { path: "test.toml".into(), text: text.clone() });
        let told = said(&Inputs { file, ..Inputs::default() });
        assert!(told.contains("line "), "{told}");
        search(&told, &text);
    }
}

/// The subcommands that read settings, with their arguments.
const COMMANDS: [&[&str]; 9] = [
    &["worker"],
    &["doctor"],
    &["doctor", "--json"],
    &["config"],
    &["config", "--json"],
    &["exists", "k"],
    &["store", "k"],
    &["healthcheck"],
    &["list", "--json"],
];

/// One attempt: description, arguments, environment.
type Run = (String, Vec<String>, Vec<(String, String)>);

/// Runs the program for all attempts, several at a time, and searches each output.
fn run_all(runs: &[Run]) {
    let place = Place::new();
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some((what, arguments, environment)) =
                    runs.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                    let trace = ("RUST_LOG".to_owned(), "trace".to_owned());
                    let given = std::iter::once(&trace).chain(environment);
                    let environment: Vec<_> = given.map(|(name, value)| (name.as_str(), value.as_str())).collect();
                    let answer = place.run_with(&arguments, &environment, b"value");
                    assert_ne!(answer.code, 0, "{what}: {answer:?}");
                    search(&format!("{} {}", answer.text(), answer.errors), what);
                }
            });
        }
    });
}

#[test]
fn no_command_says_a_secret_that_was_pasted_in_the_wrong_place() {
    let owned = |arguments: &[&str]| arguments.iter().map(|&argument| argument.to_owned()).collect::<Vec<String>>();
    let mut runs = Vec::new();
    for (form, secret) in forms().into_iter().filter(|(form, _)| *form != "word") {
        for command in COMMANDS {
            // All of them at once: what any command says of settings are the same faults.
            let plain = SETTINGS.iter().filter(|setting| {
                !matches!(setting.kind, SettingKind::Text | SettingKind::Queue | SettingKind::Queues)
            });
            let environment: Vec<(String, String)> =
                plain.map(|setting| (setting.environment(), secret.clone())).collect();
            runs.push((format!("{form}: {command:?} with variables"), owned(command), environment));
            let variants = SETTINGS.iter().filter_map(Setting::file_variant);
            let environment = variants.map(|variant| (variant.to_ascii_uppercase(), secret.clone())).collect();
            runs.push((format!("{form}: {command:?} with files"), owned(command), environment));
            for name in ["GOOGLE_APPLICATION_CREDENTIALS", "GCS_CREDENTIALS_PATH", "BROKER_TLS_KEY_FILE"] {
                let environment = vec![(name.to_owned(), secret.clone()), ("GCS_BUCKET_NAME".into(), "bucket".into())];
                runs.push((format!("{form}: {command:?} with {name}"), owned(command), environment));
            }
        }
        for flag in ["--config", "--gcs-credentials-path", "--celery-broker-url-file", "--log-level", "--metrics-port"]
        {
            runs.push((format!("{form}: {flag}"), owned(&["config", flag, &secret]), Vec::new()));
        }
    }
    run_all(&runs);
}

#[test]
fn refused_words_of_the_command_line_are_not_repeated() {
    let owned = |arguments: &[&str]| arguments.iter().map(|&argument| argument.to_owned()).collect::<Vec<String>>();
    let mut runs = Vec::new();
    for (form, secret) in forms() {
        let dashed = format!("--{secret}");
        let assigned = format!("--limit={secret}");
        for arguments in [
            &[secret.as_str()][..],
            &["exists", "a", &secret],
            &["exists", "a", &dashed],
            &["worker", &secret],
            &["worker", "-c", &secret],
            &["worker", "-l", &secret],
            &["worker", "--prefetch-multiplier", &secret],
            &["doctor", &secret],
            &["config", &secret],
            &["config", &dashed],
            &["healthcheck", &secret],
            &["store", "k", "--kind", &secret],
            &["store", "k", "--ttl-seconds", &secret],
            &["list", "--limit", &secret],
            &["list", &assigned],
            &["--json", &secret],
        ] {
            runs.push((format!("{form}: {arguments:?}"), owned(arguments), Vec::new()));
        }
        // A key is no secret, unless it plainly is one.
        if ["credentials", "credentials on one line", "pem", "broker"].contains(&form) {
            for arguments in [&["exists", &secret][..], &["retrieve", &secret], &["store", "k", &secret]] {
                runs.push((format!("{form}: {arguments:?}"), owned(arguments), Vec::new()));
            }
        }
    }
    for (form, secret) in forms().into_iter().filter(|(form, _)| !form.starts_with("broker")) {
        runs.push((format!("{form}: -b"), owned(&["worker", "-b", &secret]), Vec::new()));
    }
    run_all(&runs);
}

#[test]
fn a_broker_url_is_read_from_a_file_or_warned_of() {
    let place = Place::new();
    let url = format!("amqp://user:{CANARY}@127.0.0.1:1/v");
    std::fs::write(place.path().join("url"), &url).unwrap();
    for broker in [url.as_str(), "url", "./url"] {
        let answer = place.run(&["worker", "-b", broker, "-n", "w@%i"]);
        assert_eq!(answer.code, 78, "{answer:?}");
        assert!(answer.errors.contains("worker_name has %i"), "{answer:?}");
        let warnings = answer.errors.matches("flag -b shows its password to everybody").count();
        assert_eq!(warnings, usize::from(broker == url), "{answer:?}");
        search(&answer.errors, broker);
    }
}
