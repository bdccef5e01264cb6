//! The table of routes. A route enters the router and the OpenAPI document by the same call, so
//! that neither can lack what the other has.

use super::answers::{Page, Problem};
use super::authenticate::{Required, authenticate};
use super::extract::Change;
use super::{App, requests};
use axum::Router;
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, on};
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, Paths};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Required as Presence,
    Schema,
};
use utoipa::{PartialSchema, ToSchema};
use voute_schemas::event::Role;

/// Routes being gathered.
pub(crate) struct Routes {
    app: App,
    router: Router<App>,
    paths: Paths,
    schemas: Vec<(String, RefOr<Schema>)>,
}

/// What a route's answer consists of.
enum AnswerKind {
    Json { schema: String },
    Text { media_type: &'static str },
}

impl Routes {
    pub(crate) fn new(app: App) -> Self {
        let mut routes =
            Routes { app, router: Router::new(), paths: Paths::new(), schemas: Vec::new() };
        routes.remember::<Problem>();
        routes
    }

    /// A reading route that answers with JSON.
    pub(crate) fn get<A, H, T>(
        self,
        path: &'static str,
        role: Role,
        summary: &str,
        handler: H,
    ) -> Self
    where
        A: ToSchema,
        H: Handler<T, App>,
        T: 'static,
    {
        self.get_with::<A, H, T>(path, Required::Role(role), summary, &[], handler)
    }

    /// A reading route with query parameters.
    pub(crate) fn query<A, H, T>(
        self,
        path: &'static str,
        role: Role,
        summary: &str,
        query: &[&str],
        handler: H,
    ) -> Self
    where
        A: ToSchema,
        H: Handler<T, App>,
        T: 'static,
    {
        self.get_with::<A, H, T>(path, Required::Role(role), summary, query, handler)
    }

    /// A list of `A`, page by page.
    pub(crate) fn list<A, H, T>(
        mut self,
        path: &'static str,
        role: Role,
        summary: &str,
        handler: H,
    ) -> Self
    where
        A: ToSchema,
        H: Handler<T, App>,
        T: 'static,
    {
        self.remember::<A>();
        self.query::<Page<A>, H, T>(path, role, summary, &["after", "limit"], handler)
    }

    fn get_with<A, H, T>(
        mut self,
        path: &'static str,
        required: Required,
        summary: &str,
        query: &[&str],
        handler: H,
    ) -> Self
    where
        A: ToSchema,
        H: Handler<T, App>,
        T: 'static,
    {
        let answer = AnswerKind::Json { schema: self.remember::<A>() };
        let operation = operation(path, &required, summary, query, answer);
        self.add(path, HttpMethod::Get, MethodFilter::GET, required, operation, handler)
    }

    /// A reading route that answers with something other than JSON.
    pub(crate) fn text<H, T>(
        self,
        path: &'static str,
        required: Required,
        summary: &str,
        media_type: &'static str,
        query: &[&str],
        handler: H,
    ) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        let operation = operation(path, &required, summary, query, AnswerKind::Text { media_type });
        self.add(path, HttpMethod::Get, MethodFilter::GET, required, operation, handler)
    }

    /// A changing route with a body `B`.
    pub(crate) fn change<B, A, H, T>(
        mut self,
        method: HttpMethod,
        path: &'static str,
        role: Role,
        summary: &str,
        handler: H,
    ) -> Self
    where
        B: ToSchema,
        A: ToSchema,
        H: Handler<T, App>,
        T: 'static,
    {
        let answer = AnswerKind::Json { schema: self.remember::<A>() };
        let filter = match method {
            HttpMethod::Put => MethodFilter::PUT,
            HttpMethod::Delete => MethodFilter::DELETE,
            _ => MethodFilter::POST,
        };
        let required = Required::Role(role);
        let mut operation = operation(path, &required, summary, Change::<()>::QUERY, answer);
        for (name, description) in [
            (requests::IDEMPOTENCY_KEY, "A repeated request with this key has no second effect"),
            (requests::REASON, "Why, for the log"),
            (requests::ORIGIN, "`cli` or `console`"),
        ] {
            operation = operation.parameter(text_parameter(name, ParameterIn::Header, description));
        }
        if B::name() != <() as ToSchema>::name() {
            let schema = Ref::from_schema_name(self.remember::<B>());
            let content = ContentBuilder::new().schema(Some(schema)).build();
            let body = RequestBodyBuilder::new()
                .content("application/json", content)
                .required(Some(Presence::True))
                .build();
            operation = operation.request_body(Some(body));
        }
        self.add(path, method, filter, required, operation, handler)
    }

    fn add<H, T>(
        mut self,
        path: &'static str,
        method: HttpMethod,
        filter: MethodFilter,
        required: Required,
        operation: OperationBuilder,
        handler: H,
    ) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        let layer = from_fn_with_state((self.app.clone(), required), authenticate);
        self.paths.add_path_operation(path, vec![method], operation.build());
        self.router = self.router.route(path, on(filter, handler).layer(layer));
        self
    }

    /// Keeps a type's schema and those that it mentions; its name in the document.
    fn remember<A: ToSchema>(&mut self) -> String {
        let name = A::name().into_owned();
        self.schemas.push((name.clone(), A::schema()));
        A::schemas(&mut self.schemas);
        name
    }

    /// The router and its description.
    pub(crate) fn finish(self) -> (Router<App>, OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = ComponentsBuilder::new()
            .schemas_from_iter(self.schemas)
            .security_scheme("bearer", SecurityScheme::Http(bearer))
            .build();
        let info = InfoBuilder::new()
            .title("Voûte")
            .version(env!("CARGO_PKG_VERSION"))
            .description(Some("Open storage virtualization: the control API."))
            .build();
        let document =
            OpenApiBuilder::new().info(info).paths(self.paths).components(Some(components)).build();
        (self.router, document)
    }
}

fn operation(
    path: &str,
    required: &Required,
    summary: &str,
    query: &[&str],
    answer: AnswerKind,
) -> OperationBuilder {
    let (media_type, content) = match answer {
        AnswerKind::Json { schema } => {
            let schema = Ref::from_schema_name(schema);
            ("application/json", ContentBuilder::new().schema(Some(schema)).build())
        }
        AnswerKind::Text { media_type } => {
            (media_type, ContentBuilder::new().schema(Some(String::schema())).build())
        }
    };
    let success = ResponseBuilder::new().description("Done").content(media_type, content).build();
    let problem_content =
        ContentBuilder::new().schema(Some(Ref::from_schema_name(Problem::name()))).build();
    let problem = ResponseBuilder::new()
        .description("Refused or failed")
        .content("application/json", problem_content)
        .build();
    let mut operation = OperationBuilder::new()
        .summary(Some(summary))
        .tag(path.split('/').nth(2).unwrap_or("api"))
        .response("200", success)
        .response("default", problem);
    if let Required::Role(role) = required {
        operation = operation
            .description(Some(format!("Needs the role {role:?} or a higher one.")))
            .security(SecurityRequirement::new("bearer", Vec::<String>::new()));
    }
    for name in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
        let parameter = text_parameter(name, ParameterIn::Path, "Name or identifier");
        operation = operation.parameter(parameter.required(Presence::True));
    }
    for name in query {
        operation = operation.parameter(text_parameter(name, ParameterIn::Query, ""));
    }
    operation
}

fn text_parameter(name: &str, place: ParameterIn, description: &str) -> ParameterBuilder {
    let schema = ObjectBuilder::new().schema_type(Type::String).build();
    let description = (!description.is_empty()).then(|| description.to_owned());
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(Presence::False)
        .description(description)
        .schema(Some(schema))
}
