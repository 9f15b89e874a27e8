//! Custom sections: what they say, and whether all of what they hold is what their names say.

use super::module::MANY;
use crate::audit::facts::{Facts, Producer};
use crate::audit::names;
use crate::base::text;
use wasmparser::{
    BinaryReader, BinaryReaderError, ComponentName, CustomSectionReader, IndirectNameMap, KnownCustom, Name, NameMap,
    ProducersSectionReader,
};

/// A custom section. Whatever is wrong inside one is not an error: nothing that runs depends on it.
pub(super) fn custom(facts: &mut Facts, module: Option<usize>, section: &CustomSectionReader<'_>) {
    let (name, data) = (section.name(), section.data());
    names::odd(facts, "custom section", name, section.range().start);
    if facts.customs.len() < MANY {
        facts.customs.push((text::clean(name, 80), data.len()));
        if !all_read(section, module.is_some()).unwrap_or(false) {
            facts.unread_customs.push((text::clean(name, 80), data.len()));
        }
    }
    if name.starts_with(".debug_") {
        facts.debug_bytes += data.len();
    }
    match section.as_known() {
        KnownCustom::Producers(reader) => {
            let to = match module {
                Some(module) => &mut facts.modules[module].producers,
                None => &mut facts.producers,
            };
            producers(reader, to);
        }
        KnownCustom::Name(reader) => {
            let Some(module) = module else { return };
            let to = &mut facts.modules[module];
            let limit = (to.imported_functions as usize).saturating_add(to.functions as usize).min(MANY);
            for subsection in reader {
                let Ok(Name::Function(functions)) = subsection else { continue };
                for naming in functions.into_iter().take(limit).flatten() {
                    let mut name = naming.name.to_owned();
                    name.truncate(name.floor_char_boundary(1024));
                    to.names.insert(naming.index, name);
                }
            }
        }
        _ => {}
    }
}

fn producers(reader: ProducersSectionReader<'_>, to: &mut Vec<Producer>) {
    for field in reader.into_iter().take(16).flatten() {
        for value in field.values.into_iter().take(16).flatten() {
            to.push(Producer {
                field: text::clean(field.name, 40),
                name: text::clean(value.name, 80),
                version: text::clean(value.version, 120),
            });
        }
    }
}

/// Whether the content is, to its last byte, what a section of this name holds at this place. Only the four kinds that are
/// in every component of Rust are read; of any other nobody can say here what is in it.
fn all_read(section: &CustomSectionReader<'_>, in_module: bool) -> Result<bool, BinaryReaderError> {
    match section.as_known() {
        KnownCustom::Producers(reader) => {
            for field in reader {
                for value in field?.values {
                    value?;
                }
            }
        }
        KnownCustom::Name(reader) if in_module => {
            for subsection in reader {
                match subsection? {
                    Name::Module { .. } => {}
                    Name::Unknown { .. } => return Ok(false),
                    Name::Local(names) | Name::Label(names) | Name::Field(names) => all_of_each(names)?,
                    Name::Function(names)
                    | Name::Type(names)
                    | Name::Table(names)
                    | Name::Memory(names)
                    | Name::Global(names)
                    | Name::Element(names)
                    | Name::Data(names)
                    | Name::Tag(names) => all(names)?,
                }
            }
        }
        KnownCustom::ComponentName(reader) if !in_module => {
            for subsection in reader {
                match subsection? {
                    ComponentName::Component { .. } => {}
                    ComponentName::Unknown { .. } => return Ok(false),
                    ComponentName::CoreFuncs(names)
                    | ComponentName::CoreGlobals(names)
                    | ComponentName::CoreMemories(names)
                    | ComponentName::CoreTables(names)
                    | ComponentName::CoreTags(names)
                    | ComponentName::CoreModules(names)
                    | ComponentName::CoreInstances(names)
                    | ComponentName::CoreTypes(names)
                    | ComponentName::Types(names)
                    | ComponentName::Instances(names)
                    | ComponentName::Components(names)
                    | ComponentName::Funcs(names)
                    | ComponentName::Values(names) => all(names)?,
                }
            }
        }
        _ if in_module && section.name() == "target_features" => return target_features(section.data()),
        _ => return Ok(false),
    }
    Ok(true)
}

/// Reads each name; an error is also what is left after the last one.
fn all(names: NameMap<'_>) -> Result<(), BinaryReaderError> {
    names.into_iter().try_for_each(|name| name.map(|_| ()))
}

fn all_of_each(names: IndirectNameMap<'_>) -> Result<(), BinaryReaderError> {
    names.into_iter().try_for_each(|inner| all(inner?.names))
}

/// A count, and for each feature whether it is used and its name (the tool conventions of WebAssembly).
fn target_features(data: &[u8]) -> Result<bool, BinaryReaderError> {
    let mut reader = BinaryReader::new(data, 0);
    for _ in 0..reader.read_var_u32()? {
        let used = reader.read_u8()?;
        let name = reader.read_string()?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if !b"+-=".contains(&used) || name.len() > 40 || !name.bytes().all(plain) {
            return Ok(false);
        }
    }
    Ok(reader.eof())
}
