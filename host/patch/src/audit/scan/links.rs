//! Which core function stands behind which export of the root component: follows instances and aliases by index.

use crate::audit::facts::{Facts, Lifted};
use wasmparser::{
    BinaryReaderError, CanonicalFunction, CanonicalOption, ComponentAlias, ComponentExternalKind, ComponentTypeRef,
    ExternalKind, Instance, Payload,
};

/// Index spaces of the root component, as far as they matter.
#[derive(Default)]
pub(super) struct Links {
    /// Per core module: its index among all modules, or none if it is imported or aliased.
    modules: Vec<Option<usize>>,
    /// Whether anything instantiates or exports the module.
    used: Vec<bool>,
    /// Per core instance: the module it is of, or none.
    instances: Vec<Option<usize>>,
    /// Per core function: module and export, or none.
    functions: Vec<Option<(usize, String)>>,
    /// Functions of the component so far.
    component_functions: u32,
    lifted: Vec<Lifted>,
    /// Lifted functions that came by another way than an alias of an instance of a module.
    lifted_unknown: usize,
}

impl Links {
    /// `next_module` is the index that the module of a module section will have.
    pub(super) fn section(&mut self, payload: &Payload<'_>, next_module: usize) -> Result<(), BinaryReaderError> {
        match payload {
            Payload::ModuleSection { .. } => self.add_module(Some(next_module)),
            Payload::InstanceSection(section) => {
                for instance in section.clone() {
                    let module = match instance? {
                        Instance::Instantiate { module_index, .. } => {
                            let index = module_index as usize;
                            if let Some(used) = self.used.get_mut(index) {
                                *used = true;
                            }
                            self.modules.get(index).copied().flatten()
                        }
                        Instance::FromExports(_) => None,
                    };
                    self.instances.push(module);
                }
            }
            Payload::ComponentAliasSection(section) => {
                for alias in section.clone() {
                    self.alias(&alias?);
                }
            }
            Payload::ComponentCanonicalSection(section) => {
                for function in section.clone() {
                    self.canonical(&function?);
                }
            }
            Payload::ComponentImportSection(section) => {
                for import in section.clone() {
                    match import?.ty {
                        ComponentTypeRef::Func(_) => self.component_functions += 1,
                        ComponentTypeRef::Module(_) => self.add_module(None),
                        _ => {}
                    }
                }
            }
            Payload::ComponentExportSection(section) => {
                for export in section.clone() {
                    let export = export?;
                    match export.kind {
                        ComponentExternalKind::Func => self.component_functions += 1,
                        ComponentExternalKind::Module => {
                            let index = export.index as usize;
                            if let Some(used) = self.used.get_mut(index) {
                                *used = true;
                            }
                            self.add_module(self.modules.get(index).copied().flatten());
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn add_module(&mut self, index: Option<usize>) {
        self.modules.push(index);
        self.used.push(index.is_none());
    }

    fn alias(&mut self, alias: &ComponentAlias<'_>) {
        match alias {
            ComponentAlias::CoreInstanceExport { kind: ExternalKind::Func, instance_index, name } => {
                let module = self.instances.get(*instance_index as usize).copied().flatten();
                self.functions.push(module.map(|module| (module, (*name).to_owned())));
            }
            ComponentAlias::InstanceExport { kind: ComponentExternalKind::Func, .. } => self.component_functions += 1,
            ComponentAlias::InstanceExport { kind: ComponentExternalKind::Module, .. } => self.add_module(None),
            _ => {}
        }
    }

    fn canonical(&mut self, function: &CanonicalFunction) {
        let CanonicalFunction::Lift { core_func_index, options, .. } = function else {
            // Everything else makes a core function.
            self.functions.push(None);
            return;
        };
        match self.functions.get(*core_func_index as usize).cloned().flatten() {
            Some((module, export)) => self.lifted.push(Lifted {
                module,
                export,
                component_function: self.component_functions,
                post_return: options.iter().any(|option| matches!(option, CanonicalOption::PostReturn(_))),
            }),
            None => self.lifted_unknown += 1,
        }
        self.component_functions += 1;
    }

    pub(super) fn finish(self, facts: &mut Facts) {
        facts.lifted = self.lifted;
        facts.lifted_unknown = self.lifted_unknown;
        let modules = self.modules.iter().zip(&self.used);
        let dead = modules.filter_map(|(module, used)| if *used { None } else { *module });
        facts.dead_modules = dead.filter(|module| *module < facts.modules.len()).collect();
    }
}
