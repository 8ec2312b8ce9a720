//! Tests of the schemas: the files are those that the program prints, and the program's answers are valid by them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn printed() -> BTreeMap<String, Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_filestorage")).args(["schema", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_tree_holds_what_the_program_prints() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let printed = printed();
    let mut kept = BTreeMap::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let schema: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        kept.insert(path.file_name().unwrap().to_str().unwrap().to_owned(), schema);
    }
    let names = |schemas: &BTreeMap<String, Value>| schemas.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&kept), names(&printed), "run: filestorage schema --output schemas");
    for (name, schema) in &printed {
        assert_eq!(kept.get(name), Some(schema), "{name} drifted; run: filestorage schema --output schemas");
    }
}

#[test]
fn schemas_name_their_dialect_and_describe_parameters() {
    for (name, schema) in printed() {
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema", "{name}");
        if name.ends_with(".arguments.json") {
            let properties = schema["properties"].as_object().unwrap();
            for required in schema["required"].as_array().unwrap() {
                assert!(properties.contains_key(required.as_str().unwrap()), "{name}: {required}");
            }
            for (parameter, property) in properties {
                assert!(
                    property["description"].as_str().is_some_and(|text| text.ends_with('.')),
                    "{name}: {parameter}"
                );
            }
        }
    }
}

#[test]
fn a_receipt_has_exactly_the_members_of_its_schema() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_filestorage"))
            .args(arguments)
            .env("LOCAL_STORAGE_PATH", folder.path())
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    std::fs::write(folder.path().join("value"), "hello").unwrap();
    let receipt = run(&["store", "k", "value", "--json"]);
    let stat = run(&["stat", "k", "--json"]);
    let schemas = printed();
    for (answer, name) in [(receipt, "store.result.json"), (stat, "stat.result.json")] {
        let schema = &schemas[name];
        let properties = schema["properties"].as_object().or_else(|| schema["anyOf"][0]["properties"].as_object());
        let properties = properties.or_else(|| schema["$defs"]["Stat"]["properties"].as_object()).unwrap();
        let mut expected: Vec<&String> = properties.keys().collect();
        let mut found: Vec<&String> = answer.as_object().unwrap().keys().collect();
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{name}");
    }
}
