//! The shape of a core module that conforms to one of our worlds, for wasm-smith to fill, and what it gets afterwards: an
//! allocator and an identity. Random ones would end every guest before it is asked anything.

use std::collections::HashMap;

use wasm_encoder::reencode::{Reencode, utils};
use wasm_encoder::{CodeSection, Function, Instruction, MemArg, Module};
use wasmparser::{Parser, Payload};
use wit_parser::abi::{AbiVariant, WasmType};
use wit_parser::{Function as WitFunction, Resolve, WorldItem};

use crate::hostile::wat;

/// A module with the imports and exports of a world, and nothing in its functions.
pub fn dummy(world: &str) -> Vec<u8> {
    let (resolve, id) = wat::world_of(world);
    let (mut text, world) = ("(module ".to_string(), &resolve.worlds[id]);
    for (imports, items) in [(true, &world.imports), (false, &world.exports)] {
        for (key, item) in items {
            let WorldItem::Interface { id, .. } = item else { continue };
            let name = resolve.name_world_key(key);
            for function in resolve.interfaces[*id].functions.values() {
                text += &if imports {
                    let signature = signature(&resolve, AbiVariant::GuestImport, function);
                    format!("(import \"{name}\" \"{}\" (func {signature}))\n", function.name)
                } else {
                    let signature = signature(&resolve, AbiVariant::GuestExport, function);
                    format!("(func (export \"{name}#{}\") {signature} unreachable)\n", function.name)
                };
            }
        }
    }
    text += "(memory (export \"memory\") 1) (func (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32) unreachable))";
    ::wat::parse_str(text).unwrap()
}

fn signature(resolve: &Resolve, variant: AbiVariant, function: &WitFunction) -> String {
    let signature = resolve.wasm_signature(variant, function);
    let types = |types: &[WasmType]| types.iter().map(|ty| name(*ty)).collect::<Vec<_>>().join(" ");
    format!("(param {}) (result {})", types(&signature.params), types(&signature.results))
}

fn name(ty: WasmType) -> &'static str {
    match ty {
        WasmType::I32 | WasmType::Pointer | WasmType::Length => "i32",
        WasmType::I64 | WasmType::PointerOrI64 => "i64",
        WasmType::F32 => "f32",
        WasmType::F64 => "f64",
    }
}

/// The same module, whose `cabi_realloc` gives pages of its own to each request, and whose identity is honest.
pub fn made_honest(bytes: &[u8]) -> Vec<u8> {
    let mut fixed = Fixed { bodies: fixed_bodies(bytes), next: 0 };
    let mut module = Module::new();
    utils::parse_core_module(&mut fixed, &mut module, Parser::new(0), bytes).unwrap();
    module.finish()
}

/// The bodies to replace, by index among the defined functions.
fn fixed_bodies(bytes: &[u8]) -> HashMap<u32, Function> {
    let (mut imported, mut bodies) = (0, HashMap::new());
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.unwrap() {
            Payload::ImportSection(section) => {
                let imports = section.into_imports().map(Result::unwrap);
                imported += imports.filter(|i| matches!(i.ty, wasmparser::TypeRef::Func(_))).count() as u32;
            }
            Payload::ExportSection(section) => {
                for export in section.into_iter().map(Result::unwrap) {
                    let Some(index) = export.index.checked_sub(imported) else { continue };
                    let body = match export.name.rsplit('#').next() {
                        Some("cabi_realloc") => realloc(),
                        Some("describe") => answers(&info(), INFO),
                        Some("configure") => answers(&[(SETTINGS, vec![0; 4])], SETTINGS),
                        _ => continue,
                    };
                    bodies.insert(index, body);
                }
            }
            _ => {}
        }
    }
    bodies
}

/// As many new pages as the request needs.
fn realloc() -> Function {
    let mut function = Function::new([]);
    for instruction in [
        Instruction::LocalGet(3),
        Instruction::I32Const(16),
        Instruction::I32ShrU,
        Instruction::I32Const(1),
        Instruction::I32Add,
        Instruction::MemoryGrow(0),
        Instruction::I32Const(16),
        Instruction::I32Shl,
        Instruction::End,
    ] {
        function.instruction(&instruction);
    }
    function
}

/// Writes bytes into the memory, and returns an address.
fn answers(parts: &[(i32, Vec<u8>)], at: i32) -> Function {
    let mut function = Function::new([]);
    for (address, bytes) in parts {
        for (word, offset) in bytes.chunks(4).zip((0..).step_by(4)) {
            let mut whole = [0; 4];
            whole[..word.len()].copy_from_slice(word);
            function.instruction(&Instruction::I32Const(address + offset));
            function.instruction(&Instruction::I32Const(i32::from_le_bytes(whole)));
            function.instruction(&Instruction::I32Store(MemArg { offset: 0, align: 2, memory_index: 0 }));
        }
    }
    function.instruction(&Instruction::I32Const(at));
    function.instruction(&Instruction::End);
    function
}

const INFO: i32 = 256;
const TARGET: i32 = 320;
const SETTINGS: i32 = 384;

/// The record of `describe`, as `guests/evil/wat/base/identity.wat` has it.
fn info() -> [(i32, Vec<u8>); 7] {
    let words = |words: &[i32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    [
        (16, b"generated".to_vec()),
        (32, b"0.1.0".to_vec()),
        (48, b"nobody".to_vec()),
        (80, b"patchhost".to_vec()),
        (96, b"*".to_vec()),
        (INFO, words(&[16, 9, 32, 5, 48, 6, 48, 6, 0, 0, 0, 0, 0, 0, TARGET, 1])),
        (TARGET, words(&[80, 9, 96, 1, 0, 0])),
    ]
}

struct Fixed {
    bodies: HashMap<u32, Function>,
    next: u32,
}

impl Reencode for Fixed {
    type Error = std::convert::Infallible;

    fn parse_function_body(
        &mut self,
        code: &mut CodeSection,
        body: wasmparser::FunctionBody<'_>,
    ) -> Result<(), wasm_encoder::reencode::Error<Self::Error>> {
        let index = self.next;
        self.next += 1;
        match self.bodies.get(&index) {
            Some(fixed) => {
                code.function(fixed);
                Ok(())
            }
            None => utils::parse_function_body(self, code, body),
        }
    }
}
