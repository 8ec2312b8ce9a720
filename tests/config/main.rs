//! Tests of the settings: precedence, faults, secrets, and the shipped example.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use filestorage::config::{
    CacheSettings, ConfigFile, Faults, Flag, GcsSettings, Inputs, Loaded, LogLevel, MetricsAddress, QueueType,
    S3Settings, SETTINGS, Secret, Source, load, reference,
};
use filestorage::provider::Provider::{Gcs, S3};

fn inputs(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Inputs {
    let flag = |&(setting, value): &(&str, &str)| Flag {
        setting: setting.to_owned(),
        flag: format!("--{}", setting.replace('_', "-")),
        value: value.to_owned(),
    };
    Inputs {
        flags: flags.iter().map(flag).collect(),
        environment: environment.iter().map(|&(name, value)| (name.to_owned(), value.into())).collect(),
        file: Some(ConfigFile { path: "test.toml".into(), text: file.to_owned() }),
    }
}

fn from_file(file: &str) -> Result<Loaded, Faults> {
    load(&inputs(file, &[], &[]))
}

fn from_environment(environment: &[(&str, &str)]) -> Result<Loaded, Faults> {
    load(&inputs("", environment, &[]))
}

fn effective(loaded: &Loaded, name: &str) -> (Option<String>, Source) {
    let row = loaded.effective.iter().find(|row| row.name == name).unwrap();
    (row.value.clone(), row.source.clone())
}

/// Returns the faults as lines, without the first line.
fn lines(outcome: Result<Loaded, Faults>) -> Vec<String> {
    outcome.unwrap_err().0.iter().map(ToString::to_string).collect()
}

#[test]
fn defaults_are_those_of_the_contract() {
    let loaded = load(&Inputs::default()).unwrap();
    let settings = &loaded.settings;
    let storage = &settings.storage;
    assert_eq!((storage.local_storage_path.as_os_str(), &storage.bucket), ("./storage".as_ref(), &None));
    assert_eq!((storage.local_fallback, storage.max_retries, storage.timeout), (true, 3, Duration::from_secs(30)));
    assert!(storage.exchange_directories.is_empty());
    let (location, nothing) = ("US".to_owned(), None);
    let gcs = GcsSettings { bucket: None, project: None, location, credentials: None, emulator: nothing };
    assert_eq!(storage.gcs, gcs);
    assert_eq!(
        storage.s3,
        S3Settings { bucket: None, endpoint: None, region: None, aws: BTreeMap::new(), aws_files: BTreeMap::new() }
    );
    assert_eq!(settings.queue.broker_urls.len(), 1);
    assert_eq!(settings.queue.broker_urls[0].expose(), "amqp://guest:guest@localhost:5672//");
    assert_eq!(settings.queue.queues, ["filestorage"]);
    assert_eq!((settings.queue.queue_type, settings.queue.max_priority), (QueueType::Classic, None));
    assert_eq!((settings.worker.concurrency, settings.worker.prefetch_multiplier), (64, 8));
    assert_eq!(settings.worker.accept_content, ["json"]);
    assert!(settings.worker.events);
    assert!(settings.worker.result_persistent);
    assert!(!settings.worker.result_extended && !settings.worker.track_started && !settings.worker.send_task_events);
    assert_eq!((settings.worker.time_limit, settings.worker.soft_time_limit), (None, None));
    assert_eq!((settings.worker.max_reply_bytes, settings.worker.max_crashes), (15 << 20, 5));
    assert_eq!(settings.worker.journal_max_bytes, 256 << 20);
    assert_eq!(settings.worker.max_in_flight_bytes, None);
    assert_eq!((settings.worker.events_max_batch, settings.worker.shutdown_grace), (256, Duration::from_secs(25)));
    assert_eq!(settings.worker.name, "filestorage@%h");
    assert_eq!(settings.telemetry.metrics, Some(MetricsAddress { host: "127.0.0.1".to_owned(), port: 8002 }));
    assert_eq!(settings.telemetry.log_level, LogLevel::Info);
    assert!(loaded.warnings.is_empty());
    for (name, default) in [
        ("max_retries", "3"),
        ("timeout_seconds", "30"),
        ("chunk_size", "8192"),
        ("enable_compression", "true"),
        ("compression_threshold_bytes", "1024"),
        ("enable_encryption", "false"),
        ("enable_cache", "true"),
        ("cache_ttl_seconds", "3600"),
        ("max_cache_size_mb", "100"),
        ("enable_local_fallback", "true"),
        ("gcs_location", "US"),
        ("storage_backend", "auto"),
        ("enable_tracing", "false"),
        ("celery_accept_content", "json"),
    ] {
        assert_eq!(effective(&loaded, name), (Some(default.to_owned()), Source::Default), "{name}");
    }
}

#[test]
fn the_cache_has_bounds_or_is_off() {
    let cache = |environment| from_environment(environment).unwrap().settings.storage.cache;
    let (bytes, ttl) = (100 << 20, Duration::from_secs(3600));
    assert_eq!(cache(&[]), Some(CacheSettings { bytes, ttl, revalidate: None }));
    let given = [("MAX_CACHE_SIZE_MB", "50"), ("CACHE_TTL_SECONDS", "1800"), ("CACHE_REVALIDATE_SECONDS", "0")];
    let (bytes, ttl) = (50 << 20, Duration::from_secs(1800));
    assert_eq!(cache(&given), Some(CacheSettings { bytes, ttl, revalidate: Some(Duration::ZERO) }));
    assert_eq!(cache(&[("ENABLE_CACHE", "false"), ("MAX_CACHE_SIZE_MB", "50")]), None);
    for (name, value) in [("MAX_CACHE_SIZE_MB", "0"), ("CACHE_TTL_SECONDS", "0"), ("CACHE_REVALIDATE_SECONDS", "-1")] {
        let faults = from_environment(&[(name, value)]).unwrap_err();
        assert!(faults.to_string().contains(name), "{faults}");
    }
}

#[test]
fn flag_before_environment_before_file_before_default() {
    let file = "metrics_port = 1\nmax_crashes = 11\nchunk_size = 111";
    let environment = [("METRICS_PORT", "2"), ("MAX_CRASHES", "22")];
    let loaded = load(&inputs(file, &environment, &[("metrics_port", "3"), ("metrics_port", "4")])).unwrap();
    let flag = Source::Flag("--metrics-port".to_owned());
    assert_eq!(effective(&loaded, "metrics_port"), (Some("4".to_owned()), flag));
    assert_eq!(loaded.settings.telemetry.metrics.as_ref().unwrap().port, 4);
    let environment = Source::Environment("MAX_CRASHES".to_owned());
    assert_eq!(effective(&loaded, "max_crashes"), (Some("22".to_owned()), environment));
    assert_eq!(loaded.settings.worker.max_crashes, 22);
    assert_eq!(effective(&loaded, "chunk_size"), (Some("111".to_owned()), Source::File("test.toml".into())));
    assert_eq!(effective(&loaded, "max_retries"), (Some("3".to_owned()), Source::Default));
}

#[test]
fn an_empty_variable_is_unset_and_an_alias_counts() {
    let loaded = from_environment(&[
        ("METRICS_PORT", ""),
        ("CELERY_BROKER_URL", ""),
        ("GOOGLE_CLOUD_PROJECT_ID", "p"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/c.json"),
    ])
    .unwrap();
    assert_eq!(effective(&loaded, "metrics_port").1, Source::Default);
    let alias = Source::Environment("GOOGLE_CLOUD_PROJECT_ID".to_owned());
    assert_eq!(effective(&loaded, "gcs_project_id"), (Some("p".to_owned()), alias));
    assert_eq!(effective(&loaded, "gcs_credentials_path").0.as_deref(), Some("/c.json"));
    let both = [("GCS_PROJECT_ID", "own"), ("GOOGLE_CLOUD_PROJECT_ID", "alias")];
    assert_eq!(effective(&from_environment(&both).unwrap(), "gcs_project_id").0.as_deref(), Some("own"));
}

#[test]
fn values_of_every_shape_arrive_typed() {
    let loaded = from_file(
        r#"
        celery_broker_url = ["amqp://a:x@one//", "amqps://b:y@two/v"]
        celery_task_queues = ["high", "low", "high"]
        celery_task_default_queue_type = "QUORUM"
        celery_task_time_limit = 2.5
        celery_task_soft_time_limit = 2
        celery_result_persistent = "off"
        celery_worker_concurrency = 4
        celery_worker_prefetch_multiplier = "2"
        enable_metrics = false
        log_level = "warning"
        "#,
    )
    .unwrap();
    let (queue, worker) = (&loaded.settings.queue, &loaded.settings.worker);
    let urls: Vec<_> = queue.broker_urls.iter().map(|url| url.expose()).collect();
    assert_eq!(urls, ["amqp://a:x@one//", "amqps://b:y@two/v"]);
    assert_eq!(queue.queues, ["high", "low"]);
    assert_eq!((queue.queue_type, worker.prefetch_multiplier), (QueueType::Quorum, 2));
    assert_eq!(worker.time_limit, Some(Duration::from_millis(2500)));
    assert_eq!(worker.soft_time_limit, Some(Duration::from_secs(2)));
    assert!(!worker.result_persistent);
    assert_eq!(loaded.settings.telemetry.metrics, None);
    assert_eq!(loaded.settings.telemetry.log_level, LogLevel::Warning);
    assert_eq!(from_environment(&[("CELERY_TASK_QUEUES", "a, b")]).unwrap().settings.queue.queues, ["a", "b"]);
}

#[test]
fn every_fault_is_listed_with_setting_value_source_and_rule() {
    let file = "metrics_prot = 1\nchunk_size = \"big\"\nlog_level = \"LOUD\"\n[zzz]\nx = 1";
    let environment = [("CELERY_WORKER_CONCURRENCY", "0"), ("CELERY_ACCEPT_CONTENT", "json,pickle")];
    let faults = lines(load(&inputs(file, &environment, &[("metrics_port", "70000")])));
    for fault in [
        "metrics_prot (file test.toml): no setting has this name; did you mean metrics_port?",
        "line 4 (file test.toml): begins with a name that no setting has; `filestorage config` lists all",
        "chunk_size (file test.toml): must be a whole number from 1 to 1073741824",
        "log_level (file test.toml): must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL",
        "celery_worker_concurrency = \"0\" (environment CELERY_WORKER_CONCURRENCY): \
         must be a whole number from 1 to 4096",
        "celery_accept_content (environment CELERY_ACCEPT_CONTENT): \
         must be json, msgpack or yaml, several joined by commas; \
         pickle runs code of whoever sends it, so set task_serializer = \"json\" in the producer",
        "metrics_port = \"70000\" (flag --metrics-port): must be a whole number from 0 to 65535",
    ] {
        assert!(faults.iter().any(|found| found == fault), "{fault}\nin {faults:#?}");
    }
    assert_eq!(faults.len(), 7, "{faults:#?}");
}

#[test]
fn the_nearest_name_is_found_by_spelling_alias_and_celery_name() {
    for (key, meant) in [
        ("broker_url", "celery_broker_url"),
        ("task_default_queue", "celery_task_default_queue"),
        ("CELERY_BROKER_URL", "celery_broker_url"),
        ("GOOGLE_CLOUD_STORAGE_BUCKET", "gcs_bucket_name"),
        ("local_storage_pth", "local_storage_path"),
        ("encryption_key_fil", "encryption_key_file"),
        ("max_cache_size", "max_cache_size_mb"),
    ] {
        let faults = lines(from_file(&format!("{key} = \"x\"")));
        assert!(faults[0].ends_with(&format!("did you mean {meant}?")), "{key}: {faults:?}");
    }
    assert!(lines(from_file("zzz = 1"))[0].contains("lists all"));
}

#[test]
fn what_this_version_cannot_do_stops_the_start() {
    let faults = lines(from_environment(&[("ENABLE_TRACING", "true")]));
    assert!(faults.len() == 1 && faults[0].contains("not available in this version; unset it"), "{faults:?}");
    assert!(faults[0].contains("ENABLE_TRACING"), "{faults:?}");
    for (name, value) in [("ENABLE_ENCRYPTION", "false"), ("ENABLE_CACHE", "false"), ("CHUNK_SIZE", "9")] {
        assert!(from_environment(&[(name, value)]).is_ok(), "{name}");
    }
}

#[test]
fn values_that_do_not_go_together() {
    let faults =
        lines(from_environment(&[("CELERY_WORKER_CONCURRENCY", "4096"), ("CELERY_WORKER_PREFETCH_MULTIPLIER", "16")]));
    assert!(faults.len() == 1 && faults[0].contains("65536 messages; AMQP allows at most 65535"), "{faults:?}");
    let quorum = [("CELERY_TASK_DEFAULT_QUEUE_TYPE", "quorum"), ("CELERY_TASK_QUEUE_MAX_PRIORITY", "5")];
    assert!(lines(from_environment(&quorum))[0].contains("x-max-priority"));
    let lonely = lines(from_environment(&[("BROKER_TLS_CERTIFICATE_FILE", "/c.pem")]));
    assert!(lonely[0].starts_with("broker_tls_key_file (together): must be set as well"), "{lonely:?}");
    let pair = [("BROKER_TLS_CERTIFICATE_FILE", "/c.pem"), ("BROKER_TLS_KEY_FILE", "/k.pem")];
    let identity = from_environment(&pair).unwrap().settings.queue.tls_identity.unwrap();
    assert_eq!((identity.certificate_file, identity.key_file), ("/c.pem".into(), "/k.pem".into()));
}

#[test]
fn the_bucket_that_is_named_is_where_values_are_kept() {
    let (gcs, s3) = (("GCS_BUCKET_NAME", "one"), ("S3_BUCKET_NAME", "two"));
    let backend = |word| ("STORAGE_BACKEND", word);
    for (environment, bucket) in [
        (&[gcs][..], Some((Gcs, "one"))),
        (&[("GOOGLE_CLOUD_STORAGE_BUCKET", "alias")], Some((Gcs, "alias"))),
        (&[s3], Some((S3, "two"))),
        (&[gcs, s3], Some((Gcs, "one"))),
        (&[gcs, s3, backend("S3")], Some((S3, "two"))),
        (&[gcs, s3, backend("gcs")], Some((Gcs, "one"))),
        (&[gcs, s3, backend("local")], None),
        (&[backend("auto")], None),
    ] {
        let storage = from_environment(environment).unwrap().settings.storage;
        let wanted = bucket.map(|(provider, name)| (provider, name.to_owned()));
        assert_eq!(storage.bucket, wanted, "{environment:?}");
        let named = |(name, bucket): (_, &str)| environment.contains(&(name, bucket)).then(|| bucket.to_owned());
        assert_eq!(storage.s3.bucket, named(s3), "{environment:?}");
    }
    for (word, missing) in [("gcs", "gcs_bucket_name"), ("s3", "s3_bucket_name")] {
        let faults = lines(from_environment(&[backend(word)]));
        let start = format!("{missing} (together): must be set as well: storage_backend = {word} keeps values in");
        assert!(faults.len() == 1 && faults[0].starts_with(&start), "{faults:?}");
    }
}

#[test]
fn settings_of_buckets_arrive_typed() {
    let loaded = from_file(
        r#"
        gcs_bucket_name = "one"
        gcs_project_id = "p"
        gcs_location = "EUROPE-WEST3"
        gcs_credentials_path = "/c.json"
        storage_emulator_host = "localhost:4443"
        s3_bucket_name = "two"
        s3_endpoint_url = "https://minio.example.org"
        s3_region = "eu-central-1"
        enable_local_fallback = false
        max_retries = 0
        timeout_seconds = 0.5
        exchange_directories = ["/a", "/b c"]
        "#,
    )
    .unwrap();
    let storage = &loaded.settings.storage;
    let some = |text: &str| Some(text.to_owned());
    let gcs = GcsSettings {
        bucket: some("one"),
        project: some("p"),
        location: "EUROPE-WEST3".to_owned(),
        credentials: Some("/c.json".into()),
        emulator: some("http://localhost:4443"),
    };
    assert_eq!(storage.gcs, gcs);
    let (endpoint, region) = (some("https://minio.example.org"), some("eu-central-1"));
    assert_eq!(
        storage.s3,
        S3Settings { bucket: some("two"), endpoint, region, aws: BTreeMap::new(), aws_files: BTreeMap::new() }
    );
    assert_eq!((storage.local_fallback, storage.max_retries, storage.timeout), (false, 0, Duration::from_millis(500)));
    assert_eq!(storage.exchange_directories, [std::path::Path::new("/a"), std::path::Path::new("/b c")]);
    let joined = from_environment(&[("EXCHANGE_DIRECTORIES", "/a:/b c")]).unwrap().settings.storage;
    assert_eq!(joined.exchange_directories, storage.exchange_directories);
    let emulator =
        from_environment(&[("STORAGE_EMULATOR_HOST", "http://gcs:1/")]).unwrap().settings.storage.gcs.emulator;
    assert_eq!(emulator, some("http://gcs:1"));
}

#[test]
fn buckets_that_commands_may_name_are_listed_whole() {
    let listed =
        |text: &str| from_environment(&[("EXCHANGE_BUCKETS", text)]).map(|it| it.settings.storage.exchange_buckets);
    assert_eq!(from_environment(&[]).unwrap().settings.storage.exchange_buckets, []);
    let wanted = [(Gcs, "my_in".to_owned()), (S3, "out".to_owned())];
    assert_eq!(listed("gs://my_in, S3://out/").unwrap(), wanted);
    let loaded = from_file("exchange_buckets = [\"gs://my_in\", \"s3://out\"]").unwrap();
    assert_eq!(loaded.settings.storage.exchange_buckets, wanted);
    for (text, entry, word) in [
        ("inbox", 1, "begins with neither gs:// nor s3://"),
        ("gs://inbox,https://storage.googleapis.com/out", 2, "begins with neither"),
        ("gs://inbox/2024/*", 1, "listed whole"),
        ("gs://inbox,s3://my_out", 2, "names no bucket; after s3:// comes the bare name"),
        ("gs://", 1, "names no bucket"),
        ("gs://*", 1, "names no bucket"),
        ("gs://inbox,", 2, "begins with neither"),
    ] {
        let faults = lines(from_environment(&[("EXCHANGE_BUCKETS", text)]));
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains(&format!("entry {entry} ")) && faults[0].contains(word), "{faults:?}");
        assert!(faults[0].contains("it must be buckets as gs://name or s3://name"), "{faults:?}");
    }
}

#[test]
fn faults_of_buckets_are_told_all_at_once() {
    let faults = lines(from_environment(&[
        ("STORAGE_BACKEND", "gcs"),
        ("GCS_BUCKET_NAME", "gs://My-Bucket"),
        ("S3_BUCKET_NAME", "my_bucket"),
        ("S3_ENDPOINT_URL", "http://user:hunter2@minio"),
        ("STORAGE_EMULATOR_HOST", "ftp://localhost"),
        ("EXCHANGE_DIRECTORIES", "relative"),
        ("MAX_RETRIES", "-1"),
        ("TIMEOUT_SECONDS", "0"),
    ]));
    for fault in [
        "gcs_bucket_name (environment GCS_BUCKET_NAME): must be the bare name of a bucket: ",
        "s3_bucket_name (environment S3_BUCKET_NAME): must be the bare name of a bucket: ",
        "s3_endpoint_url (environment S3_ENDPOINT_URL): must be an http:// or https:// URL",
        "storage_emulator_host (environment STORAGE_EMULATOR_HOST): must be host:port or",
        "exchange_directories (environment EXCHANGE_DIRECTORIES): must be absolute paths",
        "max_retries = \"-1\"",
        "timeout_seconds = \"0\"",
    ] {
        assert!(faults.iter().any(|found| found.starts_with(fault)), "{fault}\nin {faults:#?}");
    }
    // A bucket whose name was refused is not also said to be missing.
    assert_eq!(faults.len(), 7, "{faults:#?}");
}

#[test]
fn the_credentials_of_s3_come_from_the_usual_variables() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    std::fs::write(&path, "hunter3\n").unwrap();
    let path = path.to_str().unwrap();
    let bucket = ("S3_BUCKET_NAME", "two");
    let (id, secret) = (("AWS_ACCESS_KEY_ID", "hunter2"), ("AWS_SECRET_ACCESS_KEY_FILE", path));
    let others = [("AWS_WEB_IDENTITY_TOKEN_FILE", "/t"), ("AWS_REGION", "r"), ("AWS_SESSION_TOKEN", "")];
    let loaded = from_environment(&[&[bucket, id, secret][..], &others].concat()).unwrap();
    assert_eq!(loaded.secret_files, [PathBuf::from(path)]);
    let aws_files = &loaded.settings.storage.s3.aws_files;
    assert_eq!(aws_files[&"AWS_SECRET_ACCESS_KEY".to_owned()], PathBuf::from(path));
    let aws = &loaded.settings.storage.s3.aws;
    let exposed: Vec<_> = aws.iter().map(|(name, secret)| (name.as_str(), secret.expose())).collect();
    let wanted = [id, others[1], ("AWS_SECRET_ACCESS_KEY", "hunter3"), others[0]];
    assert_eq!(exposed, wanted);
    assert!(!format!("{loaded:?}").contains("hunter"));
    let stars = Some("***".to_owned());
    let source = Source::Environment("AWS_SECRET_ACCESS_KEY_FILE".to_owned());
    assert_eq!(effective(&loaded, "AWS_SECRET_ACCESS_KEY"), (stars.clone(), source));
    assert_eq!(effective(&loaded, "AWS_ACCESS_KEY_ID").0, stars);
    assert!(loaded.effective.iter().all(|row| row.name != "AWS_SESSION_TOKEN"), "an empty variable is unset");
    assert_eq!(aws["AWS_REGION"], Secret::new("r"));

    for (given, missing) in [(id, "AWS_SECRET_ACCESS_KEY"), (secret, "AWS_ACCESS_KEY_ID")] {
        let faults = lines(from_environment(&[bucket, given]));
        assert!(faults.len() == 1 && faults[0].starts_with(&format!("{missing} (together): must be")), "{faults:?}");
        assert!(from_environment(&[given]).is_ok(), "without a bucket of S3 it concerns nobody");
    }
    let twice = lines(from_environment(&[secret, ("AWS_SECRET_ACCESS_KEY", "hunter4")]));
    assert!(twice.len() == 1 && twice[0].contains("set one of the two") && !twice[0].contains("hunter"), "{twice:?}");
    std::fs::write(path, "\n").unwrap();
    let empty = lines(from_environment(&[("AWS_SESSION_TOKEN_FILE", path)]));
    assert!(empty.len() == 1 && empty[0].ends_with("names a file that is empty"), "{empty:?}");
    let nowhere = lines(from_environment(&[("AWS_SESSION_TOKEN_FILE", "/nowhere/token")]));
    assert!(nowhere[0].starts_with("AWS_SESSION_TOKEN_FILE (environment AWS_SESSION_TOKEN_FILE): names a file"));
}

#[test]
fn secrets_come_from_files_and_are_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("url");
    std::fs::write(&path, "amqp://u:hunter2@one//\n\namqp://u:hunter3@two//\n").unwrap();
    let path = path.to_str().unwrap();

    let loaded = from_environment(&[("CELERY_BROKER_URL_FILE", path)]).unwrap();
    let urls: Vec<_> = loaded.settings.queue.broker_urls.iter().map(|url| url.expose()).collect();
    assert_eq!(urls, ["amqp://u:hunter2@one//", "amqp://u:hunter3@two//"]);
    let shown = "amqp://u:***@one//;amqp://u:***@two//".to_owned();
    let source = Source::Environment("CELERY_BROKER_URL_FILE".to_owned());
    assert_eq!(effective(&loaded, "celery_broker_url"), (Some(shown), source));
    assert!(!format!("{loaded:?}").contains("hunter"));
    let in_file = from_file(&format!("celery_broker_url_file = {path:?}")).unwrap();
    assert_eq!(in_file.settings.queue.broker_urls.len(), 2);
    let by_flag = load(&inputs("", &[("CELERY_BROKER_URL", "amqp://x")], &[("celery_broker_url_file", path)])).unwrap();
    assert_eq!(by_flag.settings.queue.broker_urls.len(), 2);

    assert!(!loaded.settings.queue.broker_is_default);
    assert!(from_environment(&[]).unwrap().settings.queue.broker_is_default);
    let twice = lines(from_environment(&[("CELERY_BROKER_URL_FILE", path), ("CELERY_BROKER_URL", "amqp://u:pw1@x")]));
    assert!(twice.len() == 1 && twice[0].contains("set one of the two") && !twice[0].contains("pw1"), "{twice:?}");
    for (held, said) in [("", "is empty"), ("hunter4 & co", "what it holds must be amqp://")] {
        std::fs::write(path, held).unwrap();
        let broken = lines(from_environment(&[("CELERY_BROKER_URL_FILE", path)]));
        assert!(
            broken.len() == 1 && broken[0].starts_with(&format!("celery_broker_url_file = {path:?}")),
            "{broken:?}"
        );
        assert!(broken[0].contains(said) && !broken[0].contains("hunter"), "{broken:?}");
    }
    let missing = lines(from_environment(&[("ENCRYPTION_KEY_FILE", "/nowhere/key")]));
    assert!(missing[0].starts_with("encryption_key_file = \"/nowhere/key\""), "{missing:?}");
}

#[test]
fn a_word_that_was_meant_is_named_and_what_was_given_is_not() {
    for (name, given, meant) in [("LOG_LEVEL", "wraning", "WARNING"), ("STORAGE_BACKEND", "locl", "local")] {
        let faults = lines(from_environment(&[(name, given)]));
        assert!(faults[0].ends_with(&format!("; did you mean {meant}?")) && !faults[0].contains(given), "{faults:?}");
    }
    let faults = lines(from_environment(&[("LOG_LEVEL", "hunter2")]));
    assert!(faults[0].ends_with("ERROR, CRITICAL") && !faults[0].contains("hunter2"), "{faults:?}");
    let urls = lines(from_environment(&[("CELERY_BROKER_URL", "amqp://h//;hunter2")]));
    assert!(urls[0].contains("entry 2 is wrong") && !urls[0].contains("hunter2"), "{urls:?}");
}

#[test]
fn a_password_in_a_flag_is_warned_of_and_not_repeated() {
    for url in ["amqp://u:hunter2@h//", "amqp://a//;amqp://u:hunter2@h//"] {
        let loaded = load(&inputs("", &[], &[("celery_broker_url", url)])).unwrap();
        let [warning] = loaded.warnings.as_slice() else { panic!("{:?}", loaded.warnings) };
        assert!(warning.contains("--celery-broker-url-file") && !warning.contains("hunter2"), "{warning}");
        assert!(load(&inputs("", &[("CELERY_BROKER_URL", url)], &[])).unwrap().warnings.is_empty());
    }
    for url in ["amqp://h//", "amqp://user@h//", "amqp://[::1]:5672//"] {
        assert!(load(&inputs("", &[], &[("celery_broker_url", url)])).unwrap().warnings.is_empty(), "{url}");
    }
}

#[test]
fn faults_do_not_show_secrets() {
    let file = "encryption_key = 12345\ncelery_broker_url = \"redis://u:hunter2@h\"";
    let given = inputs(file, &[("ENCRYPTION_KEY", "hunter3")], &[]);
    let faults = load(&given).unwrap_err().to_string();
    assert!(faults.contains("encryption_key = \"***\"") && faults.contains("celery_broker_url (file"), "{faults}");
    assert!(!faults.contains("hunter"), "{faults}");
    assert!(!format!("{given:?}").contains("hunter"));
    let broken = from_file("celery_broker_url = \"amqp://u:hunter2@h\nx = 1").unwrap_err().to_string();
    assert!(broken.contains("is not TOML") && broken.contains("line 1") && !broken.contains("hunter"), "{broken}");
}

#[test]
fn a_variable_that_is_nearly_a_setting_is_a_warning() {
    let loaded = from_environment(&[("CELERY_BROKER_ULR", "x"), ("CELERY_TIMEZONE", "UTC"), ("PATH", "/bin")]).unwrap();
    assert_eq!(loaded.warnings, ["environment CELERY_BROKER_ULR is no setting; did you mean CELERY_BROKER_URL?"]);
}

#[cfg(unix)]
#[test]
fn a_value_that_is_not_text_is_a_fault() {
    use std::os::unix::ffi::OsStringExt as _;
    let environment = BTreeMap::from([("WORKER_NAME".to_owned(), OsString::from_vec(vec![0xff]))]);
    let faults = lines(load(&Inputs { environment, ..Inputs::default() }));
    assert_eq!(faults, ["worker_name (environment WORKER_NAME): is not UTF-8"]);
}

#[test]
fn the_shipped_example_loads_as_it_is_and_shows_every_default() {
    let example = include_str!("../../deploy/filestorage.example.toml");
    let as_it_is = from_file(example).unwrap();
    assert!(as_it_is.effective.iter().all(|row| row.source == Source::Default));

    let uncommented: Vec<_> =
        example.lines().filter_map(|line| line.strip_prefix('#')).filter(|line| !line.starts_with(' ')).collect();
    let shown = from_file(&uncommented.join("\n")).unwrap();
    for setting in SETTINGS {
        let remark = format!("# {}", setting.doc.replace('`', ""));
        assert!(example.lines().any(|line| line.starts_with(&remark)), "{remark}");
        let (value, source) = effective(&shown, setting.name);
        match setting.default {
            Some(_) => {
                assert_eq!(source, Source::File("test.toml".into()), "{} is not in the example", setting.name);
                assert_eq!(value, effective(&as_it_is, setting.name).0, "{}", setting.name);
            }
            None => assert!(example.contains(&format!("# unset; for example: {}", setting.name)), "{}", setting.name),
        }
    }
}

#[test]
fn the_reference_names_every_setting() {
    let table = reference();
    for setting in SETTINGS {
        assert!(table.contains(&format!("| `{}`", setting.name)), "{}", setting.name);
    }
    assert_eq!(table.lines().count(), SETTINGS.len() + 2);
}

#[test]
fn what_follows_a_command_goes_to_a_queue_that_is_consumed() {
    let default_queue =
        |environment: &[(&str, &str)]| from_environment(environment).unwrap().settings.queue.default_queue;
    assert_eq!(default_queue(&[]), "filestorage");
    assert_eq!(default_queue(&[("CELERY_TASK_QUEUES", "a,b")]), "a");
    assert_eq!(default_queue(&[("CELERY_TASK_QUEUES", "a,b"), ("CELERY_TASK_DEFAULT_QUEUE", "c")]), "c");
}

#[test]
fn encryption_needs_keys_that_are_keys() {
    let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let loaded = from_environment(&[("ENABLE_ENCRYPTION", "true"), ("ENCRYPTION_KEY", key)]).unwrap();
    assert!(loaded.settings.storage.encryption && loaded.settings.storage.encryption_keys.len() == 1);
    assert_eq!(effective(&loaded, "encryption_key").0.as_deref(), Some("***"));
    let two = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(two.path(), format!("{key}\n{key}\n")).unwrap();
    let path = two.path().to_str().unwrap();
    let off = from_environment(&[("ENCRYPTION_KEY_FILE", path)]).unwrap().settings.storage;
    assert!(!off.encryption && off.encryption_keys.len() == 2, "what is encrypted is read all the same");
    assert!(!format!("{off:?}").contains("AQEB"), "{off:?}");

    assert!(!filestorage::redact::redact(&format!("it was {key} here")).contains("AQEB"), "no text repeats it");

    let missing = lines(from_environment(&[("ENABLE_ENCRYPTION", "true")]));
    assert!(missing.len() == 1 && missing[0].starts_with("encryption_key"), "{missing:?}");
    assert!(missing[0].contains("openssl rand -base64 32"), "{missing:?}");
    for (given, said) in
        [("aHVudGVyMg==", "entry 1 has 7 bytes"), (&format!("{key},hunter2!"), "entry 2 is not base64")]
    {
        let wrong = lines(from_environment(&[("ENABLE_ENCRYPTION", "true"), ("ENCRYPTION_KEY", given)]));
        assert!(wrong.len() == 1 && wrong[0].contains(said), "{wrong:?}");
        assert!(!wrong[0].contains("hunter2") && !wrong[0].contains("aHVu"), "{wrong:?}");
    }
}

#[test]
fn options_of_results_are_json_or_a_table() {
    let options = |text: &str| from_file(text).unwrap().settings.worker.result_options.expose().to_owned();
    let table =
        options("[celery_result_backend_transport_options]\nglobal_keyprefix = \"a\"\nresult_chord_ordered = false");
    assert_eq!(table, r#"{"global_keyprefix":"a","result_chord_ordered":false}"#);
    let text = options(r#"celery_result_backend_transport_options = '{"master_name": "m"}'"#);
    assert_eq!(text, r#"{"master_name": "m"}"#);
    let loaded =
        from_file("celery_result_backend_transport_options = { sentinel_kwargs = { password = 'hunter2' } }").unwrap();
    assert!(!format!("{:?}", effective(&loaded, "celery_result_backend_transport_options")).contains("hunter2"));
    let refused = lines(from_file("celery_result_backend_transport_options = { hunter2 = 1 }"));
    assert!(refused[0].contains("option that is not supported") && !refused[0].contains("hunter2"), "{refused:?}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "{\n  \"master_name\": \"m\",\n  \"min_other_sentinels\": 1\n}\n").unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let loaded = from_environment(&[("CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS_FILE", &path)]).unwrap();
    assert!(loaded.settings.worker.result_options.expose().contains("\"min_other_sentinels\": 1"));
}
